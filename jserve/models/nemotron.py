"""Nemotron, Minitron: Arcee's feed-forward, LayerNorm with weights counted from 1, half of each head rotated."""

from typing import ClassVar

from jserve.layers.norm import OffsetLayerNorm
from jserve.models import defaults
from jserve.models.arcee import ArceeDecoderLayer
from jserve.models.causal_lm import CausalLM


class NemotronDecoderLayer(ArceeDecoderLayer):
    norm_type = OffsetLayerNorm


class NemotronForCausalLM(CausalLM):
    layer_type = NemotronDecoderLayer
    norm_type = OffsetLayerNorm
    config_names: ClassVar = {"rms_norm_eps": "norm_eps"}
    config_defaults = defaults.LLAMA | {
        "vocab_size": 256000,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
    }
