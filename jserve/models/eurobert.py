"""EuroBERT: Llama's layers, whose tokens see each other both ways."""

from jserve.models import defaults
from jserve.models.llama import LlamaForCausalLM


class EuroBertModel(LlamaForCausalLM):
    config_defaults = defaults.EURO_BERT
