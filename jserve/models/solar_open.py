"""Solar Open: Llama's attention beside DeepSeek-V3's mixture on every layer."""

from jserve.models import defaults
from jserve.models.glm4_moe import GLM4_MOE, Glm4MoeDecoderLayer
from jserve.models.grouped_mixture import GroupedMixtureForCausalLM

LEFT_OUT = ("first_k_dense_replace", "intermediate_size", "partial_rotary_factor")
SOLAR_OPEN: defaults.Defaults = {key: value for key, value in GLM4_MOE.items() if key not in LEFT_OUT} | {
    "vocab_size": 196608,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "head_dim": 128,
    "moe_intermediate_size": 1280,
    "rope_theta": 1_000_000.0,
}


class SolarOpenForCausalLM(GroupedMixtureForCausalLM):
    layer_type = Glm4MoeDecoderLayer
    config_defaults = SOLAR_OPEN
