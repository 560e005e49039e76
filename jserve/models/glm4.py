"""GLM-4: half of each head is rotated, in neighbouring pairs; GLM-4-0414 norms what each block gives, too."""

import jax

from jserve.batch import LayerKV, StepContext
from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer

GLM4: defaults.Defaults = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_interleaved": True,
}


class GlmDecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, qkv_bias=config.attention_bias)

    def make_mlp(self, build: Build, config: ModelConfig) -> GatedMLP:
        return GatedMLP(build, config, fused="gate_up_proj")


class GlmForCausalLM(CausalLM):
    layer_type = GlmDecoderLayer
    config_defaults = GLM4


class Glm4DecoderLayer(GlmDecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        self.post_self_attn_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.post_mlp_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + self.post_self_attn_layernorm(attended)
        return x + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(x), context)), kv


class Glm4ForCausalLM(CausalLM):
    layer_type = Glm4DecoderLayer
    config_defaults = GLM4
