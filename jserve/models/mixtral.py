"""Mixtral: Mistral with a mixture of experts in place of the feed-forward block."""

from typing import Any

from flax import nnx

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.layers.moe import ExpertNames, MixtureOfExperts
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class MixtureDecoderLayer(LlamaDecoderLayer):
    """A Llama layer whose `mlp` is a mixture, but in the layers that the configuration keeps dense."""

    mlp: Any

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        if layer not in config.experts.dense_layers:
            self.mlp = self.make_mixture(build, config)

    def make_mixture(self, build: Build, config: ModelConfig) -> nnx.Module:
        """The family's mixture, called as a dense block is; related families differ here."""
        return MixtureOfExperts(build, config)


class MixtralDecoderLayer(MixtureDecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return MixtureOfExperts(build, config, ExpertNames("w1", "w3", "w2", folder="block_sparse_moe"))


class MixtralForCausalLM(CausalLM):
    layer_type = MixtralDecoderLayer
    config_defaults = defaults.MIXTRAL
