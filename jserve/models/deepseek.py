"""DeepSeek-V2 and V3 (R1, Kimi-K2 and others of that shape): latent attention, and experts chosen by groups."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jserve.batch import CacheArray
from jserve.config import MOST_EXPERTS, MOST_LAYERS, ModelConfig, RopeConfig
from jserve.config.deepseek import GroupRouting, LatentConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.layers.latent_attention import LatentAttention, latent_arrays
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer

METHODS = {"greedy": False, "group_limited_greedy": True}
"""DeepSeek-V2's names for a choice among all experts, and among those of the best groups."""


class DeepseekDecoderLayer(MixtureDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> LatentAttention:
        return LatentAttention(build, config, layer)

    def make_mixture(self, build: Build, config: ModelConfig) -> GroupedMixture:
        return GroupedMixture(build, config)

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray, ...]:
        del layer
        return latent_arrays(build, config)


class DeepseekForCausalLM(CausalLM):
    """What both generations share."""

    layer_type = DeepseekDecoderLayer
    config_names: ClassVar = {"num_experts": "n_routed_experts", "rope_interleaved": "rope_interleave"}

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
        fields.integer("n_routed_experts", most=MOST_EXPERTS)
        shared = (fields.optional_integer("n_shared_experts") or 0) * fields.integer("moe_intermediate_size")
        defaults = {
            "num_key_value_heads": 1,
            "head_dim": latent.rope_dim,
            "shared_expert_intermediate_size": shared,
            "mlp_only_layers": _dense_layers(fields),
        }
        config = super().read_config({**raw, **defaults}, source=source)
        assert config.mixture is not None
        scale = (latent.key_dim + latent.rope_dim) ** -0.5 * _yarn_scale(config.rope, source)
        mixture = replace(config.mixture, routing=cls.read_routing(fields))
        return replace(config, latent=latent, mixture=mixture, attention_scale=scale)

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        """How the family chooses experts."""
        raise NotImplementedError


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
        return _grouped(fields, GroupRouting("softmax", scale=scale))


class DeepseekV3ForCausalLM(DeepseekForCausalLM):
    config_defaults = defaults.DEEPSEEK_V3

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        fields.one_of("scoring_func", ("sigmoid",))
        fields.one_of("topk_method", ("noaux_tc",))
        scale = fields.number("routed_scaling_factor", default=1.0)
        return _grouped(fields, GroupRouting("sigmoid", group_best=2, corrected=True, scale=scale))


def _grouped(fields: Fields, routing: GroupRouting) -> GroupRouting:
    """With its groups. Raises CheckpointError where they are impossible."""
    experts, chosen = fields.integer("n_routed_experts"), fields.integer("num_experts_per_tok")
    groups, best = fields.integer("n_group", default=1), fields.integer("topk_group", default=1)
    if experts % groups or experts // groups < routing.group_best:
        raise fields.unlike(
            "n_group", f"a divisor of n_routed_experts, {experts}, with {routing.group_best} or more experts in a group"
        )
    if best > groups or best * (experts // groups) < chosen:
        raise fields.unlike(
            "topk_group", f"at most n_group, {groups}, and enough groups for {chosen} experts of each token"
        )
    return replace(routing, groups=groups, chosen_groups=best)


def _dense_layers(fields: Fields) -> list[int]:
    """The first layers, and where only every so many-th has experts the others."""
    layers, every = fields.integer("num_hidden_layers", most=MOST_LAYERS), fields.integer("moe_layer_freq", default=1)
    first = fields.optional_integer("first_k_dense_replace") or 0
    return [layer for layer in range(layers) if layer < first or layer % every]


def _yarn_scale(rope: RopeConfig, source: Path | str) -> float:
    """What YaRN does to the scores beyond its factor on cos and sin: DeepSeek's mscale_all_dim."""
    if rope.kind != "yarn" or not rope.get("mscale_all_dim"):
        return 1.0
    fields = Fields(dict(rope.scaling), source)
    factor, weight = fields.number("factor", default=1.0), fields.number("mscale_all_dim", default=0.0)
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0
