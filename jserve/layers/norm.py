"""Normalisation."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.layers.build import Build
from jserve.layers.fused_source import CopiedHeads
from jserve.layers.source import Source, Tensor


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis, in float32 (Zhang and Sennrich 2019). `name` is its weight's."""

    def __init__(self, build: Build, size: int, eps: float, name: str = "weight") -> None:
        self.weight = build.param(Tensor(name, (size,)), (size,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        return self.weight[...].astype(x.dtype) * over_rms(x, self.eps).astype(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight), in float32 to the end, as Gemma has it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        return ((1 + self.weight[...].astype(jnp.float32)) * over_rms(x, self.eps)).astype(x.dtype)


class HeadsRMSNorm(nnx.Module):
    """RMSNorm over all heads at once, with a weight for each dimension of each, as OLMo 2 has it.

    With more devices than KV heads, each KV head is there `copies` times: the mean over all is the same.
    """

    def __init__(self, build: Build, heads: int, head_dim: int, eps: float, copies: int = 1) -> None:
        source = CopiedHeads("weight", heads, head_dim, copies)
        self.weight = build.param(source, (heads * copies, head_dim), 0)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, heads * copies, D]; the result has its dtype."""
        return self.weight[...].astype(x.dtype) * over_rms(x, self.eps, (-2, -1)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * weight + bias over the last axis, in float32 (Ba et al. 2016)."""

    has_bias: ClassVar = True

    def __init__(self, build: Build, size: int, eps: float, name: str = "") -> None:
        """`name` is the checkpoint's where it is not the attribute's, relative to it."""
        prefix = f"{name}." if name else ""
        self.weight = build.param(Tensor(f"{prefix}weight", (size,)), (size,))
        self.bias = build.param(Tensor(f"{prefix}bias", (size,)), (size,)) if self.has_bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        wide = x.astype(jnp.float32)
        y = over_rms(wide - jnp.mean(wide, axis=-1, keepdims=True), self.eps) * self.weight[...].astype(jnp.float32)
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class OffsetLayerNorm(LayerNorm):
    """With (1 + weight) for the weight, as Nemotron has it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        wide = x.astype(jnp.float32)
        y = over_rms(wide - jnp.mean(wide, axis=-1, keepdims=True), self.eps)
        assert self.bias is not None
        return (y * (1 + self.weight[...].astype(jnp.float32)) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class EachHeadLayerNorm(nnx.Module):
    """LayerNorm of each head by itself, with a weight for each dimension of each and no bias: Cohere, StableLM."""

    def __init__(self, build: Build, source: Source, shape: tuple[int, int], eps: float) -> None:
        self.weight = build.param(source, shape, 0)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [T, heads, D]; the result has its dtype."""
        wide = x.astype(jnp.float32)
        y = over_rms(wide - jnp.mean(wide, axis=-1, keepdims=True), self.eps)
        return (y * self.weight[...].astype(jnp.float32)).astype(x.dtype)


class LayerNormWithoutBias(LayerNorm):
    """As Cohere has it."""

    has_bias = False


Norm = RMSNorm | LayerNorm


def over_rms(x: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """x / rms(x) over these axes, float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + eps)
