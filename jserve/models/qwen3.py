"""Qwen3: Llama with an RMSNorm on every query and key head."""

from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class Qwen3DecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        bias = config.attention_bias
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, head_norm=RMSNorm)


class Qwen3ForCausalLM(CausalLM):
    layer_type = Qwen3DecoderLayer
    config_defaults = defaults.QWEN3
