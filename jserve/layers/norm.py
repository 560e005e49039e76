"""Normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx

from jserve.layers.build import Build
from jserve.layers.source import Tensor


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        self.weight = build.param(Tensor("weight", (size,)), (size,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        return self.weight[...].astype(x.dtype) * _over_rms(x, self.eps).astype(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight), in float32 to the end, as Gemma has it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., size]; the result has its dtype."""
        return ((1 + self.weight[...].astype(jnp.float32)) * _over_rms(x, self.eps)).astype(x.dtype)


def _over_rms(x: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
