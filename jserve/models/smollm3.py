"""SmolLM3: Llama where some layers, every fourth if the file does not say, have no rotary embedding."""

from typing import ClassVar

from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class SmolLM3ForCausalLM(CausalLM):
    layer_type = LlamaDecoderLayer
    config_defaults: ClassVar = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    }
