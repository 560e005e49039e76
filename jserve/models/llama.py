"""Llama 2 and 3, and what shares its shape (SmolLM2)."""

from typing import ClassVar

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.latent_attention import LatentAttention
from jserve.layers.mlp import MLP, GatedMLP
from jserve.layers.norm import Norm, RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class LlamaDecoderLayer(DecoderLayer):
    """Pre-norm attention and feed-forward around a residual stream."""

    norm_type: ClassVar[type[Norm]] = RMSNorm

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.input_layernorm = self.norm_type(build, config.hidden_size, config.norm_eps)
        self.self_attn = self.make_attention(build, config, layer)
        self.post_attention_layernorm = self.norm_type(build, config.hidden_size, config.norm_eps)
        self.mlp = self.make_mlp(build, config)

    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention | LatentAttention:
        """The family's attention; related families differ only here."""
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias)

    def make_mlp(self, build: Build, config: ModelConfig) -> GatedMLP | MLP:
        """And here."""
        return GatedMLP(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x), context), kv


class LlamaForCausalLM(CausalLM):
    layer_type = LlamaDecoderLayer
    config_defaults = defaults.LLAMA
