"""Llama 4, text: attention in chunks, layers without rope, and experts whose input, not output, is weighted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.batch import LayerKV, StepContext, TextContext
from jserve.config import MOST_LAYERS, MixtureConfig, ModelConfig
from jserve.config.fields import Fields
from jserve.layers.attention import Attention
from jserve.layers.build import Build
from jserve.layers.expert_source import AllExperts, EachExpert, FirstFound
from jserve.layers.mlp import GatedMLP
from jserve.layers.moe import Experts, ExpertSource, Router
from jserve.layers.norm import RMSNorm, over_rms
from jserve.layers.rope import query_growth
from jserve.models import defaults
from jserve.models.causal_lm import CausalLM, DecoderLayer


class Llama4Attention(Attention):
    """Queries and keys are normed after they are rotated; where nothing is rotated, queries grow with the position."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        super().__init__(build, config, layer, qkv_bias=bias, output_bias=bias)
        self.has_norm, self.eps = config.rotated_norm, config.norm_eps
        self.temperature = config.attention_temperature

    def place(self, q: jax.Array, k: jax.Array, context: StepContext | TextContext) -> tuple[jax.Array, jax.Array]:
        q, k = super().place(q, k, context)
        if self.rope is not None and self.has_norm:
            return over_rms(q, self.eps).astype(q.dtype), over_rms(k, self.eps).astype(k.dtype)
        if self.rope is None and self.temperature is not None:
            q = q * query_growth(context.positions + 1, self.temperature)[:, None, None].astype(q.dtype)
        return q, k


class Llama4Router(Router):
    """The sigmoid of the best experts' scores."""

    def choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, experts = jax.lax.top_k(logits, self.mixture.experts_per_token)
        return experts, jax.nn.sigmoid(scores)


class Llama4Experts(Experts):
    """Experts of a token that is multiplied by its weight for them. All of them in one tensor, inputs first, or one
    tensor each.
    """

    def __init__(self, build: Build, config: ModelConfig, mixture: MixtureConfig) -> None:
        count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
        gate_up = AllExperts("gate_up_proj", count, inner, hidden, parts=2, inputs_first=True)
        down = AllExperts("down_proj", count, hidden, inner, inputs_first=True)
        each = EachExpert(count, ("gate_proj.weight", "up_proj.weight"), (inner, hidden))
        each_down = EachExpert(count, ("down_proj.weight",), (hidden, inner))
        super().__init__(
            build,
            config,
            mixture,
            ExpertSource(FirstFound((gate_up, each)), each),
            ExpertSource(FirstFound((down, each_down)), each_down),
        )

    def _local(self, x: jax.Array, experts: jax.Array, weights: jax.Array, arrays: tuple[Any, ...]) -> jax.Array:
        tokens, chosen = experts.shape
        weighted = (x[:, None] * weights[..., None].astype(x.dtype)).reshape(tokens * chosen, -1)
        y = super()._local(weighted, experts.reshape(-1, 1), jnp.ones((tokens * chosen, 1), jnp.float32), arrays)
        return y.reshape(tokens, chosen, -1).sum(1)


class Llama4Mixture(nnx.Module):
    """Named `feed_forward`: experts, and one more that every token goes through."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        mixture = config.mixture
        assert mixture is not None
        self.router = Llama4Router(build, config, mixture)
        self.experts = Llama4Experts(build, config, mixture)
        self.shared_expert = GatedMLP(build, replace(config, intermediate_size=mixture.shared_intermediate_size))

    def __call__(self, x: jax.Array, context: StepContext) -> jax.Array:
        """[T, E] to [T, E]."""
        return self.experts(x, self.router(x, context.is_real), self.shared_expert.partials(x))


class Llama4DecoderLayer(DecoderLayer):
    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        self.input_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        self.self_attn = Llama4Attention(build, config, layer)
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size, config.norm_eps)
        mixture = config.mixture
        is_dense = mixture is None or layer in mixture.dense_layers
        self.feed_forward: GatedMLP | Llama4Mixture = (GatedMLP if is_dense else Llama4Mixture)(build, config)

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + attended
        return x + self.feed_forward(self.post_attention_layernorm(x), context), kv


class Llama4ForCausalLM(CausalLM):
    layer_type = Llama4DecoderLayer
    config_defaults = defaults.LLAMA4

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        raw = cls.with_defaults(raw)
        fields = Fields(raw, source)
        layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
        has_rope = _rotated_layers(fields, layers)
        inner = fields.integer("intermediate_size")
        named = {
            "intermediate_size": fields.integer("intermediate_size_mlp"),
            "layer_types": _layer_types(fields, has_rope),
            "mlp_only_layers": _dense_layers(fields, layers),
            "moe_intermediate_size": inner,
            "no_rope_layers": has_rope,
            "rope_interleaved": True,
            "shared_expert_intermediate_size": inner,
        }
        config = super().read_config({**raw, **named}, source=source)
        grows = fields.boolean("attn_temperature_tuning", default=True)
        temperature = (fields.number("floor_scale", default=8192.0), fields.number("attn_scale", default=0.1))
        return replace(
            config,
            rotated_norm=fields.boolean("use_qk_norm", default=True),
            attention_temperature=temperature if grows else None,
        )


def _rotated_layers(fields: Fields, layers: int) -> list[int]:
    """1 for each layer that has a rotary embedding; an empty list in the file means what none does."""
    if named := fields.for_each_layer("no_rope_layers", layers):
        return named
    every = fields.integer("no_rope_layer_interval", default=4)
    return [int((layer + 1) % every > 0) for layer in range(layers)]


def _layer_types(fields: Fields, has_rope: list[int]) -> list[str]:
    if named := fields.for_each_layer("layer_types", len(has_rope)):
        return named
    in_chunks = fields.optional_integer("attention_chunk_size") is not None
    return ["chunked_attention" if has and in_chunks else "full_attention" for has in has_rope]


def _dense_layers(fields: Fields, layers: int) -> list[int]:
    """Those without experts: not in `moe_layers`, or where that is missing, not every so many-th."""
    if fields.get("moe_layers") is not None:
        mixed = fields.integers("moe_layers")
        return [layer for layer in range(layers) if layer not in mixed]
    every = fields.integer("interleave_moe_layer_step", default=1)
    return [layer for layer in range(layers) if (layer + 1) % every]
