"""MiniMax-M2: norms over all heads of queries and of keys, and Mixtral's experts, chosen as DeepSeek-V3 does."""

from pathlib import Path
from typing import Any, ClassVar

from jserve.config import ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.layers.moe import ExpertNames
from jserve.models import defaults
from jserve.models.grouped_mixture import GroupedMixtureDecoderLayer, GroupedMixtureForCausalLM

MINIMAX_M2: defaults.Defaults = {
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5_000_000.0,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
    "norm_topk_prob": True,
}


class MiniMaxM2Mixture(GroupedMixture):
    names: ClassVar = ExpertNames("w1", "w3", "w2", folder="block_sparse_moe")
    correction = "../../block_sparse_moe.e_score_correction_bias"


class MiniMaxM2DecoderLayer(GroupedMixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> Attention:
        return Attention(build, config, layer, projection_norm=True)

    def make_mixture(self, build: Build, config: ModelConfig) -> GroupedMixture:
        return MiniMaxM2Mixture(build, config)


class MiniMaxM2ForCausalLM(GroupedMixtureForCausalLM):
    layer_type = MiniMaxM2DecoderLayer
    config_defaults = MINIMAX_M2

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        rotated, head_dim = fields.optional_integer("rotary_dim"), fields.integer("head_dim")
        named = {"n_routed_experts": raw["num_local_experts"], "moe_intermediate_size": raw["intermediate_size"]}
        if rotated is not None:
            named["partial_rotary_factor"] = rotated / head_dim
        return super().read_config({**raw, **named}, source=source)

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        return GroupRouting("sigmoid", corrected=True)
