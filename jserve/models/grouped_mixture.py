"""DeepSeek's mixture: dense layers first, then experts chosen by groups, and some that every token goes through.

Other families have it beside attention of their own. They choose as DeepSeek-V3 does, where they do not say otherwise.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jserve.config import MOST_EXPERTS, MOST_LAYERS, ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer

MLP_TYPES = ("dense", "sparse")


class GroupedMixtureDecoderLayer(MixtureDecoderLayer):
    def make_mixture(self, build: Build, config: ModelConfig) -> GroupedMixture:
        return GroupedMixture(build, config)


class GroupedMixtureForCausalLM(CausalLM):
    layer_type = GroupedMixtureDecoderLayer
    config_names: ClassVar = {"num_experts": "n_routed_experts"}

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        fields.integer("n_routed_experts", most=MOST_EXPERTS)
        shared = (fields.optional_integer("n_shared_experts") or 0) * fields.integer("moe_intermediate_size")
        own = {"shared_expert_intermediate_size": shared, "mlp_only_layers": dense_layers(fields)}
        config = super().read_config({**raw, **own}, source=source)
        return replace(config, mixture=replace(config.experts, routing=cls.read_routing(fields)))

    @classmethod
    def read_routing(cls, fields: Fields) -> GroupRouting:
        """How the family chooses experts."""
        return sigmoid_routing(fields)


def sigmoid_routing(fields: Fields) -> GroupRouting:
    """V3's choice, which other families took over. Raises CheckpointError where its groups are impossible."""
    scale = fields.number("routed_scaling_factor", default=1.0)
    return grouped(fields, GroupRouting("sigmoid", group_best=2, corrected=True, scale=scale))


def grouped(fields: Fields, routing: GroupRouting) -> GroupRouting:
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


def dense_layers(fields: Fields) -> list[int]:
    """Those that are named, or the first ones, and where only every so many-th has experts the others."""
    layers, every = fields.integer("num_hidden_layers", most=MOST_LAYERS), fields.integer("moe_layer_freq", default=1)
    kinds = fields.for_each_layer("mlp_layer_types", layers)
    if kinds is not None:
        if unknown := [kind for kind in kinds if kind not in MLP_TYPES]:
            raise fields.wrong("mlp_layer_types", f"has {unknown[0]!r}; supported are {', '.join(MLP_TYPES)}")
        return [layer for layer, kind in enumerate(kinds) if kind == MLP_TYPES[0]]
    first = fields.optional_integer("first_k_dense_replace") or 0
    return [layer for layer in range(layers) if layer < first or layer % every]
