"""Gemma 2: norms before and after each block, soft caps, and a window on every other layer."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import OffsetRMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class Gemma2DecoderLayer(DecoderLayer):
    """The residual stream takes what the second norm of each block leaves."""

    head_norm: ClassVar[type[OffsetRMSNorm] | None] = None

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps, bias = config.hidden_size, config.norm_eps, config.attention_bias
        self.input_layernorm = OffsetRMSNorm(build, size, eps)
        self.self_attn = Attention(build, config, layer, qkv_bias=bias, output_bias=bias, head_norm=self.head_norm)
        self.post_attention_layernorm = OffsetRMSNorm(build, size, eps)
        self.pre_feedforward_layernorm = OffsetRMSNorm(build, size, eps)
        self.mlp = GatedMLP(build, config)
        self.post_feedforward_layernorm = OffsetRMSNorm(build, size, eps)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x), context)), kv


class Gemma2ForCausalLM(CausalLM):
    layer_type = Gemma2DecoderLayer
    norm_type = OffsetRMSNorm
    config_defaults = defaults.GEMMA2

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        # Some files have `hidden_act` too, with what was first said of Gemma 1; it is not used.
        raw = cls.with_defaults(raw)
        config = super().read_config({**raw, "hidden_act": raw["hidden_activation"]}, source=source)
        return replace(config, embedding_multiplier=math.sqrt(config.hidden_size))
