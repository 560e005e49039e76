"""Granite 4: Mamba-2, attention in some layers, and experts beside a block that every token goes through."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.expert_source import AllExperts
from jserve.layers.mlp import GatedMLP
from jserve.layers.moe import ExpertNames, Experts, ExpertSource, MixtureOfExperts
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.hybrid import ATTENTION, MAMBA2, read_layers, read_mamba2
from jserve.models.mamba2_layer import Mamba2DecoderLayer

GRANITE_HYBRID = (
    defaults.GRANITE
    | MAMBA2
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024, "norm_topk_prob": True}
)

TYPES = {"mamba": "linear_attention", "attention": ATTENTION}
"""Names of types of layers in published files, by transformers'."""


class GraniteMixture(MixtureOfExperts):
    """One tensor for each product of all experts."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__(build, config, ExpertNames(folder="block_sparse_moe", router="router.layer"))
        mixture = config.experts
        count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
        gate_up = AllExperts("../input_linear.weight", count, inner, hidden, parts=2)
        down = AllExperts("../output_linear.weight", count, hidden, inner)
        self.experts = Experts(build, config, mixture, ExpertSource(gate_up, gate_up), ExpertSource(down, down))


class GraniteHybridDecoderLayer(Mamba2DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.block_sparse_moe = None if config.mixture is None else GraniteMixture(build, config)
        self.shared_mlp = GatedMLP(build, config, fused="input_linear", names=("gate", "up", "output_linear"))
        self.multiplier = config.residual_multiplier

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        mixed, kv = self.mix(x, kv, context)
        x = x + mixed * self.multiplier
        normed = self.post_attention_layernorm(x)
        y = self.shared_mlp(normed, context)
        if self.block_sparse_moe is not None:
            y = y + self.block_sparse_moe(normed, context)
        return x + y * self.multiplier, kv


class GraniteMoeHybridForCausalLM(CausalLM):
    layer_type = GraniteHybridDecoderLayer
    config_defaults = GRANITE_HYBRID

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        types = raw.get("layer_types")
        if isinstance(types, list):
            raw = {**raw, "layer_types": [TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in types]}
        raw, states = read_layers(raw, "linear_attention", set(), source=source)
        config = super().read_config(raw, source=source)
        if fields.get("position_embedding_type") != "rope":
            config = replace(config, layer_ropes=(None,) * config.num_layers)
        shared = fields.integer("shared_intermediate_size")
        return replace(config, intermediate_size=shared, mixer=read_mamba2(fields), state_layers=states)
