"""SmolLM3: Llama where some layers, every fourth if the file does not say, have no rotary embedding."""

from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer


class SmolLM3ForCausalLM(CausalLM):
    layer_type = LlamaDecoderLayer
    config_defaults = defaults.SMOLLM3
