"""Cohere 2 with experts: the best few by their scores, and shared ones that are added to them or averaged with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax

from jserve.config import MOST_LAYERS, ModelConfig
from jserve.config.deepseek import GroupRouting
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.grouped_router import GroupedMixture
from jserve.layers.mlp import GatedMLP
from jserve.layers.norm import RMSNorm
from jserve.models import defaults
from jserve.models.cohere2 import Cohere2DecoderLayer, Cohere2ForCausalLM
from jserve.models.grouped_mixture import dense_layers

COHERE2_MOE = defaults.COHERE2 | {
    "head_dim": 128,
    "expert_selection_fn": "softmax",
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 0,
    "prefix_dense_sliding_window_pattern": 1,
    "rope_theta": 10_000.0,
    "shared_expert_combination_strategy": "average",
}
HALF = 0.5


class Cohere2Mixture(GroupedMixture):
    """In the average both halves carry their factor: that of the experts is the router's."""

    def _shared(self, x: jax.Array) -> jax.Array | None:
        partial = super()._shared(x)
        routing = self.gate.mixture.routing
        assert routing is not None
        return None if partial is None else partial * routing.scale


class Cohere2MoeDecoderLayer(Cohere2DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        super().__init__(build, config, layer)
        if config.rms_norm:
            self.input_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)

    def make_mlp(self, build: Build, config: ModelConfig, layer: int) -> GatedMLP | Cohere2Mixture:
        assert config.mixture is not None
        return GatedMLP(build, config) if layer in config.mixture.dense_layers else Cohere2Mixture(build, config)


class Cohere2MoeForCausalLM(Cohere2ForCausalLM):
    layer_type = Cohere2MoeDecoderLayer
    config_defaults: ClassVar = COHERE2_MOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        eps = fields.optional_number("rms_norm_eps")
        inner, dense = fields.integer("intermediate_size"), dense_layers(fields)
        shared = fields.optional_integer("num_shared_experts") or 0
        scoring = fields.one_of("expert_selection_fn", ("softmax", "sigmoid"))
        is_average = fields.one_of("shared_expert_combination_strategy", ("average", "sum")) == "average"
        named = {
            "intermediate_size": fields.integer("prefix_dense_intermediate_size", default=inner),
            "layer_types": fields.get("layer_types") or _layer_types(fields),
            "mlp_only_layers": dense,
            "moe_intermediate_size": inner,
            "norm_topk_prob": True if scoring == "softmax" else raw["norm_topk_prob"],
            "shared_expert_intermediate_size": inner * shared,
        }
        if eps is not None:
            named["layer_norm_eps"] = eps
        config = super().read_config({**raw, **named}, source=source)
        assert config.mixture is not None
        scale = HALF if is_average and shared else 1.0
        mixture = replace(config.mixture, routing=GroupRouting(scoring, scale=scale))
        ropes = list(config.layer_ropes)
        if fields.integer("prefix_dense_sliding_window_pattern") == 1:  # where all of them see everything, they turn
            for layer in dense:
                ropes[layer] = config.rope
        return replace(config, mixture=mixture, layer_ropes=tuple(ropes), rms_norm=eps is not None)

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__(build, config)
        if config.rms_norm:
            self.model.norm = RMSNorm(build, config.hidden_size, config.norm_eps)


def _layer_types(fields: Fields) -> list[str]:
    """Two patterns, one behind the other: of the layers without experts, and of those with them."""
    layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    first = min(fields.optional_integer("first_k_dense_replace") or 0, layers)
    patterns = (
        (first, fields.integer("prefix_dense_sliding_window_pattern")),
        (layers - first, fields.integer("sliding_window_pattern")),
    )
    return [
        "sliding_attention" if (number + 1) % pattern else "full_attention"
        for count, pattern in patterns
        for number in range(count)
    ]
