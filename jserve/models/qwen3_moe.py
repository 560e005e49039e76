"""Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B): Qwen3 with experts."""

from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer
from jserve.models.qwen3 import Qwen3DecoderLayer


class Qwen3MoeDecoderLayer(MixtureDecoderLayer, Qwen3DecoderLayer):
    pass


class Qwen3MoeForCausalLM(CausalLM):
    layer_type = Qwen3MoeDecoderLayer
    config_defaults = defaults.QWEN3_MOE
