"""OLMo 2: norms after each block instead of before it, and over all heads of queries and of keys."""

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class Olmo2DecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        size, eps = config.hidden_size, config.norm_eps
        self.self_attn = self.make_attention(build, config, layer)
        self.post_attention_layernorm = RMSNorm(build, size, eps)
        self.mlp = GatedMLP(build, config)
        self.post_feedforward_layernorm = RMSNorm(build, size, eps)

    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        """The family's attention; related families differ only here."""
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, projection_norm=True)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(x, kv, context)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(x, context)), kv


class Olmo2ForCausalLM(CausalLM):
    layer_type = Olmo2DecoderLayer
    config_defaults = defaults.OLMO2
