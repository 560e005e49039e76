"""Phi-3.5-MoE: LayerNorm, biases up to the logits, and a router that weighs each of two experts against near rivals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jserve.config import MixtureConfig, ModelConfig
from jserve.config.fields import Fields
from jserve.layers.build import Build
from jserve.layers.moe import ExpertNames, MixtureOfExperts, Router
from jserve.layers.norm import LayerNorm
from jserve.layers.source import Source
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.mixtral import MixtureDecoderLayer

NAMES = ExpertNames("w1", "w3", "w2", folder="block_sparse_moe")
PHIMOE = defaults.MIXTRAL | {
    "vocab_size": 32064,
    "intermediate_size": 6400,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
}


class SparseMixer(Router):
    """The best expert, then the best of the others; each weighs what the softmax over those near it gives.

    Near is within 2 * noise of the larger of both scores (arXiv:2310.00811; transformers, `sparsemixer` of Phimoe).
    """

    def choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        experts, weights, rest = [], [], logits
        for _ in range(self.mixture.experts_per_token):
            best = rest.max(-1, keepdims=True)
            far = (best - logits) / jnp.maximum(jnp.abs(logits), best) > 2 * self.mixture.router_noise
            shares = jax.nn.softmax(jnp.where(far, -jnp.inf, rest))
            expert = rest.argmax(-1)[:, None]
            experts.append(expert)
            weights.append(jnp.take_along_axis(shares, expert, axis=-1))
            rest = jnp.where(jnp.arange(rest.shape[-1]) == expert, -jnp.inf, rest)
        return jnp.concatenate(experts, axis=-1), jnp.concatenate(weights, axis=-1)


class PhimoeMixture(MixtureOfExperts):
    def make_router(self, build: Build, config: ModelConfig, mixture: MixtureConfig, source: Source) -> Router:
        return SparseMixer(build, config, mixture, source)


class PhimoeDecoderLayer(MixtureDecoderLayer):
    norm_type = LayerNorm

    def make_mixture(self, build: Build, config: ModelConfig) -> MixtureOfExperts:
        return PhimoeMixture(build, config, NAMES)


class PhimoeForCausalLM(CausalLM):
    layer_type = PhimoeDecoderLayer
    norm_type = LayerNorm
    config_defaults = PHIMOE

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        if fields.integer("num_experts_per_tok") != 2:
            raise fields.unlike("num_experts_per_tok", "2, which the router of this family chooses")
        place = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        config = super().read_config({**raw, place: _one_factor(fields.dictionary(place), source)}, source=source)
        assert config.mixture is not None
        noise = fields.optional_number("router_jitter_noise") if raw["router_jitter_noise"] else 0.0
        return replace(config, mixture=replace(config.mixture, router_noise=noise or 0.0))


def _one_factor(parameters: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """LongRoPE's factor on cos and sin under the name that other families have for it."""
    fields = Fields(parameters, source)
    short, long = (fields.optional_number(f"{kind}_mscale") for kind in ("short", "long"))
    if short != long:
        raise fields.unlike("long_mscale", f"short_mscale, which is {short}, as in all published models")
    rest = {key: value for key, value in parameters.items() if not key.endswith("_mscale")}
    return rest if short is None else {**rest, "attention_factor": short}
