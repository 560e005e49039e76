"""DeepSeek-V2 and V3 (R1, Kimi-K2 and others of that shape): latent attention, and experts chosen by groups."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jserve.batch import CacheArray
from jserve.config import ModelConfig, RopeConfig
from jserve.config.deepseek import GroupRouting, LatentConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.latent_attention import LatentAttention, latent_arrays
from jserve.models import defaults
from jserve.models.grouped_mixture import (
    GroupedMixtureDecoderLayer,
    GroupedMixtureForCausalLM,
    grouped,
    sigmoid_routing,
)

METHODS = {"greedy": False, "group_limited_greedy": True}
"""DeepSeek-V2's names for a choice among all experts, and among those of the best groups."""


class DeepseekDecoderLayer(GroupedMixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> LatentAttention:
        return LatentAttention(build, config, layer)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray, ...]:
        del layer
        return latent_arrays(build, config)


class DeepseekForCausalLM(GroupedMixtureForCausalLM):
    """What both generations share."""

    layer_type = DeepseekDecoderLayer
    config_names: ClassVar = {**GroupedMixtureForCausalLM.config_names, "rope_interleaved": "rope_interleave"}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        latent = LatentConfig(
            rank=fields.integer("kv_lora_rank"),
            rope_dim=fields.integer("qk_rope_head_dim"),
            key_dim=fields.integer("qk_nope_head_dim"),
            value_dim=fields.integer("v_head_dim"),
            query_rank=fields.optional_integer("q_lora_rank"),
        )
        own = {"num_key_value_heads": 1, "head_dim": latent.rope_dim}
        config = super().read_config({**raw, **own}, source=source)
        scale = (latent.key_dim + latent.rope_dim) ** -0.5 * _yarn_scale(config.rope, source)
        return replace(config, latent=latent, attention_scale=scale)


class DeepseekV2ForCausalLM(DeepseekForCausalLM):
    config_defaults = defaults.DEEPSEEK_V2

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        fields.one_of("scoring_func", ("softmax",))
        # Implementations disagree on what it means beside the scaling factor, and no published model sets it.
        fields.one_of("norm_topk_prob", (False,))
        scale = fields.number("routed_scaling_factor", default=1.0)
        if not METHODS[fields.one_of("topk_method", tuple(METHODS))]:
            return GroupRouting("softmax", scale=scale)
        return grouped(fields, GroupRouting("softmax", scale=scale))


class DeepseekV3ForCausalLM(DeepseekForCausalLM):
    config_defaults = defaults.DEEPSEEK_V3

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        fields.one_of("scoring_func", ("sigmoid",))
        fields.one_of("topk_method", ("noaux_tc",))
        return sigmoid_routing(fields)


class Glm4MoeLiteForCausalLM(DeepseekV3ForCausalLM):
    """GLM-4.7-Flash."""

    config_defaults = defaults.DEEPSEEK_V3 | {
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
    }


def _yarn_scale(rope: RopeConfig, source: Path | str) -> float:
    """What YaRN does to the scores beyond its factor on cos and sin: DeepSeek's mscale_all_dim."""
    if rope.kind != "yarn" or not rope.get("mscale_all_dim"):
        return 1.0
    fields = Fields(dict(rope.scaling), source)
    factor, weight = fields.number("factor", default=1.0), fields.number("mscale_all_dim", default=0.0)
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0
