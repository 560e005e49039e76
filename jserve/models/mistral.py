"""Mistral: Llama, in some models with a sliding window. Ministral 3: queries that grow with the position."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jserve.batch import StepContext, TextContext
from jserve.config import ModelConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.rope import query_growth
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM
from jserve.models.llama import LlamaDecoderLayer

_GROWTH = "llama_4_scaling_beta"


class MistralAttention(Attention):
    """Queries are multiplied by 1 + beta * log(1 + floor(position / n)), n the length before YaRN, where there is beta.

    (transformers, `get_llama_4_attn_scale` of Ministral 3.)
    """

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        super().__init__(build, config, layer, qkv_bias=bias, output_bias=bias)
        self.temperature = config.attention_temperature

    def place(self, q: jax.Array, k: jax.Array, context: StepContext | TextContext) -> tuple[jax.Array, jax.Array]:
        q, k = super().place(q, k, context)
        if self.temperature is None:
            return q, k
        return q * query_growth(context.positions, self.temperature)[:, None, None].astype(q.dtype), k


class MistralDecoderLayer(LlamaDecoderLayer):
    def make_attention(self, build: Build, config: ModelConfig, layer: int) -> MistralAttention:
        return MistralAttention(build, config, layer)


class MistralForCausalLM(CausalLM):
    """Files of one architecture name are of several model types, whose silence means different things."""

    layer_type = MistralDecoderLayer
    config_defaults = defaults.MISTRAL

    @classmethod
    def with_defaults(cls, raw: dict[str, Any]) -> dict[str, Any]:
        names = raw.get("architectures") or []
        if raw.get("model_type") == "ministral3" or "Ministral3ForCausalLM" in names:
            return defaults.filled(raw, defaults.MINISTRAL3, defaults.MINISTRAL3_ROPE)
        return super().with_defaults(raw)

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        raw, temperature = without_growth(raw, source)
        return replace(super().read_config(raw, source=source), attention_temperature=temperature)


def without_growth(raw: dict[str, Any], source: Path | str) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """A `config.json` whose rotary embedding does not say how queries grow, and how they do."""
    place = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = dict(Fields(raw, source).dictionary(place))
    growth = parameters.pop(_GROWTH, None)
    rest = {**raw, place: parameters}
    if not growth:
        return rest, None
    strength = Fields({_GROWTH: growth}, source).required_number(_GROWTH)
    positions = Fields(raw, source).integer("max_position_embeddings")
    original = Fields(parameters, source).integer("original_max_position_embeddings", default=positions)
    return rest, (float(original), strength)
