"""Bamba: Mamba-2, and attention in some layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.hybrid import MAMBA2, read_layers, read_mamba2
from jserve.models.mamba2_layer import Mamba2DecoderLayer

BAMBA: dict[str, Any] = {key: value for key, value in defaults.LLAMA.items() if key != "use_sliding_window"} | {
    **MAMBA2,
    "vocab_size": 128000,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
}


class BambaDecoderLayer(Mamba2DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        self.pre_ff_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.feed_forward = GatedMLP(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        mixed, kv = self.mix(x, kv, context)
        x = x + mixed
        return x + self.feed_forward(self.pre_ff_layernorm(x), context), kv


class FinalNorm(RMSNorm):
    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, size, eps, "../final_layernorm.weight")


class BambaForCausalLM(CausalLM):
    layer_type = BambaDecoderLayer
    norm_type = FinalNorm
    config_defaults = BAMBA

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        raw, states = read_layers(raw, "linear_attention", fields.integers("attn_layer_indices"), source=source)
        config = super().read_config({**raw, "partial_rotary_factor": 0.5}, source=source)
        return replace(config, mixer=read_mamba2(fields), state_layers=states)
