"""StarCoder2: Llama with LayerNorm, biases and a feed-forward without a gate."""

from typing import ClassVar

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.mlp import MLP
from jserve.layers.norm import LayerNorm
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class Starcoder2DecoderLayer(LlamaDecoderLayer):
    norm_type = LayerNorm

    def make_mlp(self, build: Build, config: ModelConfig) -> MLP:
        return MLP(build, config, names=("c_fc", "c_proj"), bias=config.mlp_bias)


class Starcoder2ForCausalLM(CausalLM):
    layer_type = Starcoder2DecoderLayer
    norm_type = LayerNorm
    config_defaults = defaults.STARCODER2
    config_names: ClassVar = {"rms_norm_eps": "norm_epsilon", "attention_bias": "use_bias", "mlp_bias": "use_bias"}
