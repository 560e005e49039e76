"""GLM-4.5, 4.6 and 4.7: DeepSeek-V3's mixture beside attention whose heads are rotated in part and may be normed."""

from typing import ClassVar

from jserve.config import ModelConfig
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.grouped_mixture import GroupedMixtureDecoderLayer, GroupedMixtureForCausalLM

GLM4_MOE: defaults.Defaults = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}


class Glm4MoeDecoderLayer(GroupedMixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        norm = RMSNorm if config.head_norm else None
        return Attention(build, config, layer, qkv_bias=config.attention_bias, head_norm=norm)


class Glm4MoeForCausalLM(GroupedMixtureForCausalLM):
    layer_type = Glm4MoeDecoderLayer
    config_defaults = GLM4_MOE
    config_names: ClassVar = {**GroupedMixtureForCausalLM.config_names, "head_norm": "use_qk_norm"}
