"""Phi-3, Phi-3.5 and Phi-4: Llama whose checkpoints keep query, key and value in one tensor, gate and up in another."""

from jserve.config import ModelConfig
from jserve.layers.attention import Attention, Projections
from jserve.layers.build import Build
from jserve.layers.mlp import GatedMLP
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class Phi3DecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, projections=Projections(fused="qkv_proj"))

    def make_mlp(self, build: Build, config: ModelConfig) -> GatedMLP:
        return GatedMLP(build, config, fused="gate_up_proj")


class Phi3ForCausalLM(CausalLM):
    layer_type = Phi3DecoderLayer
    config_defaults = defaults.PHI3
