"""Qwen2 and Qwen2.5: Llama with a bias on query, key and value."""

from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class Qwen2DecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, qkv_bias=True)


class Qwen2ForCausalLM(CausalLM):
    layer_type = Qwen2DecoderLayer
    config_defaults = defaults.QWEN2
