"""Hunyuan, dense and with experts: heads are normed after they are rotated, by a base that a fixed alpha stretches."""

from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import StepContext, TextContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.moe import ExpertNames, MixtureOfExperts
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer
from jserve.models.mixtral import MixtureDecoderLayer

HUNYUAN = defaults.LLAMA | {"vocab_size": 290943, "rms_norm_eps": 1e-5}
NAMES = ExpertNames(router="gate.wg", shared="shared_mlp")


class HunYuanAttention(Attention):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        super().__init__(build, config, layer, qkv_bias=bias, output_bias=bias)
        self.query_layernorm = RMSNorm(build, config.head_dim, config.norm_eps)
        self.key_layernorm = RMSNorm(build, config.head_dim, config.norm_eps)

    def place(self, q: jax.Array, k: jax.Array, context: StepContext | TextContext) -> tuple[jax.Array, jax.Array]:
        q, k = super().place(q, k, context)
        return self.query_layernorm(q), self.key_layernorm(k)


class HunYuanDecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> HunYuanAttention:
        return HunYuanAttention(build, config, layer)


class HunYuanDenseV1ForCausalLM(CausalLM):
    layer_type: ClassVar = HunYuanDecoderLayer
    config_defaults = HUNYUAN

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return super().read_config(_stretched(cls.with_defaults(raw), source), source=source)


class HunYuanMoEDecoderLayer(MixtureDecoderLayer, HunYuanDecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return MixtureOfExperts(build, config, NAMES)


class HunYuanMoEV1ForCausalLM(HunYuanDenseV1ForCausalLM):
    layer_type = HunYuanMoEDecoderLayer
    config_defaults = HUNYUAN | {"num_experts": 1, "moe_topk": 1, "norm_topk_prob": True}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        inner, fields = raw["intermediate_size"], Fields(raw, source)
        one = {name: _same_in_all_layers(fields, name) for name in ("moe_intermediate_size", "num_shared_expert")}
        if one["moe_intermediate_size"] not in (None, inner) or one["num_shared_expert"] not in (None, 1):
            raise fields.wrong(
                "moe_intermediate_size", "must be intermediate_size, with one shared expert of that size"
            )
        named = {
            "num_experts": _same_in_all_layers(fields, "num_experts"),
            "num_experts_per_tok": _same_in_all_layers(fields, "moe_topk"),
            "moe_intermediate_size": inner,
            "shared_expert_intermediate_size": inner,
        }
        return super().read_config({**raw, **named}, source=source)


def _same_in_all_layers(fields: Fields, name: str) -> Any:
    """A number, or the one that is meant by a list of the same for each layer."""
    value = fields.get(name)
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise fields.wrong(name, "differs between layers; supported is one number for all")
    return value[0]


def _stretched(raw: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """Without `alpha`: files say "dynamic", but a fixed alpha only makes the base larger.

    (transformers, `compute_ntk_alpha_rope_parameters` of HunYuanDenseV1.)
    """
    fields = Fields(raw, source)
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = fields.dictionary(name)
    alpha = Fields(parameters, source).optional_number("alpha")
    if alpha is None or "dynamic" not in (parameters.get("rope_type"), parameters.get("type")):
        return raw
    dim = fields.integer("head_dim", default=fields.integer("hidden_size") // fields.integer("num_attention_heads"))
    theta = Fields({**raw, **parameters}, source).number("rope_theta", default=10000.0) * alpha ** (dim / (dim - 2))
    return {**raw, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
