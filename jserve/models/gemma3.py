"""Gemma 3, its text part: Gemma 2 with norms on query and key heads, five local layers to a global one."""

from jserve.layers.norm import OffsetRMSNorm
from jserve.models import defaults
from jserve.models.gemma2 import Gemma2DecoderLayer, Gemma2ForCausalLM


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    head_norm = OffsetRMSNorm


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    layer_type = Gemma3DecoderLayer
    config_defaults = defaults.GEMMA3
