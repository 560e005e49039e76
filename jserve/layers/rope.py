"""Rotary position embedding (Su et al. 2021) and its scalings for long contexts."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jserve.config import RopeConfig
from jserve.errors import CheckpointError


def rope_table(positions: jax.Array, inverse_frequencies: np.ndarray, factor: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position, f32[T, D / 2], scaled by `factor`. positions: i32[T]."""
    angles = positions[:, None].astype(jnp.float32) * inverse_frequencies
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(x: jax.Array, rope: tuple[jax.Array, jax.Array], *, interleaved: bool = False) -> jax.Array:
    """Rotate pairs of the first R dimensions; the others stay. x: [T, heads, D]; cos, sin: [T, R / 2].

    A pair is a dimension of the first half and its like in the second, or with `interleaved` two neighbours.
    """
    cos, sin = (part[:, None].astype(x.dtype) for part in rope)
    rotated, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    if interleaved:
        pairs = rotated.reshape(*rotated.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(rotated.shape)
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
        # Whole rows: XLA:CPU computes halves that are put together one number at a time.
        swapped = jnp.concatenate([second, first], axis=-1)
        turned = rotated * jnp.concatenate([cos, cos], axis=-1) + swapped * jnp.concatenate([-sin, sin], axis=-1)
    return turned if not rest.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


def query_growth(positions: jax.Array, temperature: tuple[float, float]) -> jax.Array:
    """i32[T] to f32[T], what queries are multiplied by: see `ModelConfig.attention_temperature`."""
    every, strength = temperature
    steps = jnp.floor(positions.astype(jnp.float32) / every)
    return jnp.log1p(steps) * strength + 1.0


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_model_len: int) -> tuple[np.ndarray, float]:
    """f32[R / 2] angles per position, and the factor on cos and sin. R is `rope.partial` of `head_dim`."""
    head_dim = rope.head_dim or head_dim
    if rope.kind == "proportional":
        return _proportional(rope, head_dim), 1.0
    dim = int(head_dim * rope.partial)
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
    if rope.kind == "linear":
        return plain / np.float32(rope.get("factor")), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.kind == "yarn":
        return _yarn(rope, plain, dim)
    if rope.kind == "longrope":
        return _longrope(rope, plain, max_model_len)
    if rope.kind == "freq_factors":
        return plain / np.asarray(rope.get("factors"), np.float32), 1.0
    return plain, 1.0


def _proportional(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Gemma 4: pairs are those of the whole head, of which a share turns, at the speeds that they would have in it."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    turns = np.arange(head_dim // 2) < int(rope.partial * head_dim // 2)
    plain = 1.0 / np.float32(rope.theta) ** exponent / np.float32(rope.get("factor") or 1.0)
    return np.where(turns, plain, 0.0).astype(np.float32)


def _llama3(rope: RopeConfig, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1: stretch long wavelengths by `factor`, keep short ones, blend between (Meta, llama-models)."""
    factor, low, high = (float(rope.get(key)) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope.get("original_max_position_embeddings"))
    wavelength = 2 * math.pi / plain
    if high == low:  # Llama 4's: nothing lies between
        return np.where(original / wavelength < low, plain / np.float32(factor), plain).astype(np.float32)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32)


def _longrope(rope: RopeConfig, plain: np.ndarray, max_model_len: int) -> tuple[np.ndarray, float]:
    """LongRoPE (Ding et al. 2024). The long factors are for whole sequences longer than the model was first
    trained for, so an engine that allows such sequences uses them for all: keys in the cache cannot change.
    """
    original = float(rope.get("original_max_position_embeddings"))
    chosen = "long_factor" if max_model_len > original else "short_factor"
    factors = np.asarray(rope.get(chosen), np.float32)
    if factors.shape != plain.shape:
        raise CheckpointError(f"{chosen} of the rope scaling has {factors.size} numbers instead of {plain.size}")
    factor = float(rope.get("factor"))
    scale = rope.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / factors, float(scale)


def _yarn(rope: RopeConfig, plain: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023, sections 3.2 to 3.4)."""
    original = float(rope.get("original_max_position_embeddings"))
    factor = float(rope.get("factor"))

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.get("beta_fast") or 32), dimension_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / ((high - low) or 0.001)
    interpolate = np.clip(ramp, 0.0, 1.0)
    scaled = plain / factor * interpolate + plain * (1 - interpolate)
    return scaled.astype(np.float32), _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: RopeConfig, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope.get("attention_factor"))
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope.get("mscale")) / mscale(rope.get("mscale_all_dim"))
    return mscale(1.0)
