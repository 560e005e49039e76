"""Gemma 3, its text part: Gemma 2 with norms on query and key heads, five local layers to a global one."""

from typing import ClassVar

from jserve.layers.norm import OffsetRMSNorm
from jserve.models.gemma2 import Gemma2DecoderLayer, Gemma2ForCausalLM


class Gemma3DecoderLayer(Gemma2DecoderLayer):
    head_norm = OffsetRMSNorm


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """The smaller models' files leave most of these out."""

    layer_type = Gemma3DecoderLayer
    config_defaults: ClassVar = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    }
