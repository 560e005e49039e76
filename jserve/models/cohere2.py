"""Cohere 2 (Command R7B, Command A): attention and feed-forward side by side; global layers have no rope."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import LayerNormWithoutBias, Norm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class Cohere2DecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.input_layernorm: Norm = LayerNormWithoutBias(build, config.hidden_size, config.norm_eps)
        self.self_attn = self.make_attention(build, config, layer)
        self.mlp = self.make_mlp(build, config, layer)

    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        """The family's attention; related families differ here."""
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias)

    def make_mlp(self, build: Build, config: ModelConfig, layer: int) -> Any:
        """And here."""
        del layer
        return GatedMLP(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        normal = self.input_layernorm(x)
        attended, kv = self.self_attn(normal, kv, context)
        return x + attended + self.mlp(normal, context), kv


class Cohere2ForCausalLM(CausalLM):
    layer_type = Cohere2DecoderLayer
    norm_type = LayerNormWithoutBias
    config_defaults = defaults.COHERE2
    config_names: ClassVar = {"rms_norm_eps": "layer_norm_eps"}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        config = super().read_config(raw, source=source)
        return replace(config, layer_ropes=tuple(config.rope if window else None for window in config.layer_windows))
