"""Gemma 4, its text part: Gemma 3's layers, whose heads differ between those with a window and those without.

The small models give each layer a part of a second table of tokens, and their last layers read the keys and values of
earlier ones. One has experts beside the feed-forward block.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jserve.batch import CacheArray, LayerKV, StepContext
from jserve.config import MixtureConfig, ModelConfig
from jserve.config.gemma import GemmaConfig
from jserve.layers.attention import Attention, kv_arrays
from jserve.layers.build import Build
from jserve.layers.expert_source import AllExperts
from jserve.layers.linear import Embedding, Linear
from jserve.layers.mlp import ACTIVATIONS, GatedMLP
from jserve.layers.moe import Experts, ExpertSource, Router
from jserve.layers.norm import Norm, RMSNorm, over_rms
from jserve.layers.rope import apply_rope
from jserve.layers.source import InputsFirst, Tensor
from jserve.models.causal_lm import CausalLM, Decoder, DecoderLayer
from jserve.models.gemma4_config import GEMMA4, read_gemma4


class Gemma4Attention(Attention):
    """Queries and keys are normed with a weight, values without one. Scores are not scaled."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        shape, own = config.of_layer(layer), _gemma(config)
        self.reads = own.sources[layer] == layer
        others = () if not self.reads else ("k",) if layer in own.keys_are_values else ("k", "v")
        bias = config.attention_bias
        super().__init__(
            build,
            shape,
            layer,
            qkv_bias=bias,
            output_bias=bias,
            norms=lambda side, heads, copies: (
                RMSNorm(build, shape.head_dim, config.norm_eps) if side in ("q", *others) else None
            ),
            others=others,
        )
        self.eps = config.norm_eps

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:  # type: ignore[override]
        tokens, qkv = x.shape[0], self.qkv_proj(x)
        assert self.rope is not None
        table = context.ropes[self.rope]
        q = qkv[:, :, : self.groups].reshape(tokens, -1, qkv.shape[-1])
        assert self.q_norm is not None
        q, k, v = apply_rope(self.q_norm(q), table), None, None
        if self.k_norm is not None:
            k, v = qkv[:, :, self.groups], qkv[:, :, -1]
            k, v = apply_rope(self.k_norm(k), table), over_rms(v, self.eps).astype(x.dtype)
        out, kv = self.attend(q, k, v, kv, context)
        return self.o_proj(out.reshape(tokens, -1)), kv


class Gemma4Router(Router):
    """Scores of a normed token, scaled by weights; each expert's weight is multiplied by a number of its own."""

    def __init__(self, build: Build, config: ModelConfig, mixture: MixtureConfig) -> None:
        size, count = config.hidden_size, mixture.num_experts
        super().__init__(build, config, mixture, InputsFirst(Tensor("proj.weight", (count, size))))
        self.scale = build.param(Tensor("scale", (size,)), (size,))
        self.per_expert_scale = build.param(Tensor("per_expert_scale", (count,)), (count,))
        self.eps, self.factor = config.norm_eps, size**-0.5

    def logits(self, x: jax.Array) -> jax.Array:
        normal = over_rms(x, self.eps).astype(x.dtype)
        return super().logits(normal * self.scale[...].astype(x.dtype) * self.factor)

    def choose(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        experts, weights = super().choose(logits)
        return experts, weights * self.per_expert_scale[...].astype(jnp.float32)[experts]


class Gemma4DecoderLayer(DecoderLayer):
    """As Gemma 3's; then experts of what the block was given are added, and what the layer has of each token."""

    def __init__(self, build: Build, config: ModelConfig, layer: int) -> None:
        own, mixture, inner = _gemma(config), config.mixture, config.intermediate_size
        self.input_layernorm = _norm(build, config)
        self.self_attn = Gemma4Attention(build, config, layer)
        self.post_attention_layernorm = _norm(build, config)
        self.pre_feedforward_layernorm = _norm(build, config)
        wide = replace(config, intermediate_size=2 * inner) if layer in own.wide_layers else config
        self.mlp = GatedMLP(build, wide)
        self.post_feedforward_layernorm = _norm(build, config)
        self.has_experts, self.has_input = mixture is not None, own.input_size > 0
        if mixture is not None:
            self.router = Gemma4Router(build, config, mixture)
            self.experts = _experts(build, config, mixture)
            self.post_feedforward_layernorm_1 = _norm(build, config)
            self.pre_feedforward_layernorm_2 = _norm(build, config)
            self.post_feedforward_layernorm_2 = _norm(build, config)
        if own.input_size:
            size, hidden = own.input_size, config.hidden_size
            self.per_layer_input_gate = _whole(build, hidden, size)
            self.per_layer_projection = _whole(build, size, hidden)
            self.post_per_layer_input_norm = _norm(build, config)
        self.layer_scalar = build.param(Tensor("layer_scalar", (1,)), (1,))
        self.activation = config.hidden_act

    @classmethod
    def cache(cls, build: Build, config: ModelConfig, layer: int) -> tuple[CacheArray, ...]:
        return kv_arrays(build, config.of_layer(layer)) if config.kv_source(layer) == layer else ()

    def __call__(self, x: jax.Array, kv: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        attended, kv = self.self_attn(self.input_layernorm(x), kv, context)
        x = x + self.post_attention_layernorm(attended)
        y = self.mlp(self.pre_feedforward_layernorm(x), context)
        if self.has_experts:
            routed = self.router(x, context.is_real)
            chosen = self.experts(self.pre_feedforward_layernorm_2(x), routed)
            y = self.post_feedforward_layernorm_1(y) + self.post_feedforward_layernorm_2(chosen)
        x = x + self.post_feedforward_layernorm(y)
        if self.has_input:
            assert context.layer_input is not None
            gate = ACTIVATIONS[self.activation](self.per_layer_input_gate(x))
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(gate * context.layer_input))
        return x * self.layer_scalar[...].astype(x.dtype), kv


class Gemma4Decoder(Decoder):
    """With what makes each layer's own input of a token."""

    def __init__(
        self, build: Build, config: ModelConfig, layer_type: type[DecoderLayer], norm_type: type[Norm]
    ) -> None:
        super().__init__(build, config, layer_type, norm_type)
        own = _gemma(config)
        self.layers_and_size = config.num_layers, own.input_size
        if own.input_size:
            width = config.num_layers * own.input_size
            rows = -(-own.input_vocab // build.tensor_parallel) * build.tensor_parallel
            self.embed_tokens_per_layer = Embedding(build, Tensor("weight", (own.input_vocab, width)), (rows, width))
            self.per_layer_model_projection = _whole(build, config.hidden_size, width)
            self.per_layer_projection_norm = RMSNorm(build, own.input_size, config.norm_eps)

    def layer_inputs(self, token_ids: jax.Array, x: jax.Array) -> jax.Array:
        """[T, L, P] of i32[T] and the residual before the first layer, [T, E]."""
        layers, size = self.layers_and_size
        own = self.embed_tokens_per_layer(token_ids).reshape(-1, layers, size) * math.sqrt(size)
        made = (self.per_layer_model_projection(x) * x.shape[1] ** -0.5).reshape(-1, layers, size)
        return (self.per_layer_projection_norm(made) + own) * math.sqrt(0.5)


class Gemma4ForCausalLM(CausalLM):
    layer_type = Gemma4DecoderLayer
    decoder_type = Gemma4Decoder
    config_defaults: ClassVar = GEMMA4

    @classmethod
    def read_config(cls, raw: dict[str, Any], *, source: Path | str) -> ModelConfig:
        return read_gemma4(cls.with_defaults(raw), super().read_config, source=source)

    def layer_inputs(self, token_ids: jax.Array, x: jax.Array) -> jax.Array | None:
        assert isinstance(self.model, Gemma4Decoder)
        return self.model.layer_inputs(token_ids, x) if _gemma(self.config).input_size else None


def _gemma(config: ModelConfig) -> GemmaConfig:
    assert config.gemma is not None
    return config.gemma


def _norm(build: Build, config: ModelConfig) -> RMSNorm:
    return RMSNorm(build, config.hidden_size, config.norm_eps)


def _whole(build: Build, inputs: int, outputs: int) -> Linear:
    """A product that every device computes."""
    return Linear(build, Tensor("weight", (outputs, inputs)), (inputs, outputs), shard=None)


def _experts(build: Build, config: ModelConfig, mixture: MixtureConfig) -> Experts:
    count, hidden, inner = mixture.num_experts, config.hidden_size, mixture.intermediate_size
    gate_up = AllExperts("gate_up_proj", count, inner, hidden, parts=2)
    down = AllExperts("down_proj", count, hidden, inner)
    return Experts(build, config, mixture, ExpertSource(gate_up, gate_up), ExpertSource(down, down))
