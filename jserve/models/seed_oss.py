"""Seed-OSS: Llama with a bias on query, key and value, and of its own on attention's output."""

from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class SeedOssDecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        output = config.attention_output_bias
        return Attention(build, config, layer, qkv_bias=config.attention_bias, output_bias=output)


class SeedOssForCausalLM(CausalLM):
    layer_type = SeedOssDecoderLayer
    config_defaults = defaults.LLAMA | {
        "vocab_size": 155136,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
    }
