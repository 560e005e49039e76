"""dots.llm1: Qwen3's attention beside DeepSeek-V3's mixture."""

from jserve.models import defaults
from jserve.models.grouped_mixture import GroupedMixtureDecoderLayer, GroupedMixtureForCausalLM
from jserve.models.qwen3 import Qwen3DecoderLayer

DOTS1 = {key: value for key, value in defaults.LLAMA.items() if key != "use_sliding_window"} | {
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "use_sliding_window": True,
    "norm_topk_prob": False,
}


class Dots1DecoderLayer(GroupedMixtureDecoderLayer, Qwen3DecoderLayer):
    pass


class Dots1ForCausalLM(GroupedMixtureForCausalLM):
    layer_type = Dots1DecoderLayer
    config_defaults = DOTS1
