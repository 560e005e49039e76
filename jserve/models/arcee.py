"""Arcee (AFM-4.5B): Llama whose feed-forward squares a ReLU and has no gate."""

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.mlp import MLP
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class ArceeDecoderLayer(LlamaDecoderLayer):
    def make_mlp(self, build: Build, config: ModelConfig) -> MLP:
        return MLP(build, config, names=("up_proj", "down_proj"), bias=config.mlp_bias)


class ArceeForCausalLM(CausalLM):
    layer_type = ArceeDecoderLayer
    config_defaults = defaults.LLAMA | {
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
