"""Cohere (Command R, Command R+, Aya): Cohere 2 without windows, and in the largest with normed heads."""

from typing import ClassVar

from jserve.config import ModelConfig
from jserve.layers.attention import Attention, NormOfHeads
from jserve.layers.build import Build
from jserve.layers.fused_source import CopiedHeads
from jserve.layers.norm import EachHeadLayerNorm, LayerNormWithoutBias
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.cohere2 import Cohere2DecoderLayer

LEFT_OUT = ("sliding_window", "sliding_window_pattern")


class CohereDecoderLayer(Cohere2DecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        bias, norms = config.attention_bias, _norms(build, config) if config.head_norm else None
        return Attention(build, config, layer, qkv_bias=bias, output_bias=bias, norms=norms)


class CohereForCausalLM(CausalLM):
    layer_type = CohereDecoderLayer
    norm_type = LayerNormWithoutBias
    config_names: ClassVar = {"head_norm": "use_qk_norm", "rms_norm_eps": "layer_norm_eps"}
    config_defaults = {key: value for key, value in defaults.COHERE2.items() if key not in LEFT_OUT} | {
        "rope_theta": 500_000.0
    }


def _norms(build: Build, config: ModelConfig) -> NormOfHeads:
    """All heads' in one tensor."""

    def norm(side: str, heads: int, copies: int) -> EachHeadLayerNorm:
        source = CopiedHeads("weight", heads, config.head_dim, copies, is_flat=False)
        return EachHeadLayerNorm(build, source, (heads * copies, config.head_dim), config.norm_eps)

    return norm
