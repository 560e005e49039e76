"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with experts, one of which every token goes through."""

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.moe import MixtureOfExperts
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer
from jserve.models.qwen2 import Qwen2DecoderLayer


class Qwen2MoeDecoderLayer(MixtureDecoderLayer, Qwen2DecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return MixtureOfExperts(build, config, shared_gate=True)


class Qwen2MoeForCausalLM(CausalLM):
    layer_type = Qwen2MoeDecoderLayer
    config_defaults = defaults.QWEN2_MOE
