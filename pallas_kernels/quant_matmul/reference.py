"""The definition of a product with a quantized weight: dequantize to float32, multiply, round nothing else.

Never fast. Every implementation is compared with this one.
"""

import jax
import jax.numpy as jnp

__all__ = ["ACTIVATIONS", "dequantize", "reference", "round_rows"]

ACTIVATIONS: dict[str, jnp.dtype | None] = {
    "float": None,
    "int8": jnp.dtype(jnp.int8),
    "fp8": jnp.dtype(jnp.float8_e4m3fn),
}
"""How the other side of a product may be rounded, and to which type."""

LARGEST = {"int8": 127.0, "fp8": 448.0}


def reference(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    group_index: jax.Array | None = None,
    input_scale: jax.Array | None = None,
    *,
    activations: str = "float",
) -> jax.Array:
    """x dequantize(...)^T in float32; arguments as in `quant_matmul`. Returns f32[T, N]."""
    rows = x.astype(jnp.float32)
    if activations != "float":
        rounded, row_scale = round_rows(rows, activations, input_scale)
        rows = rounded.astype(jnp.float32) * row_scale
    weight = dequantize(values, scale, zero, group_index)
    return jnp.einsum("tk,nk->tn", rows, weight, precision="highest")


def dequantize(
    values: jax.Array, scale: jax.Array, zero: jax.Array | None = None, group_index: jax.Array | None = None
) -> jax.Array:
    """The weight in float32, [N, K]; arguments as in `quant_matmul`."""
    if values.dtype == jnp.uint8:
        codes = jnp.stack([values & 15, values >> 4], axis=-1).reshape(values.shape[0], -1).astype(jnp.float32)
        middle = 8.0
    else:
        codes, middle = values.astype(jnp.float32), 0.0
    if group_index is None:
        group_index = jnp.arange(codes.shape[1]) // (codes.shape[1] // scale.shape[1])
    shift = middle if zero is None else zero.astype(jnp.float32)[:, group_index]
    return (codes - shift) * scale.astype(jnp.float32)[:, group_index]


def round_rows(x: jax.Array, kind: str, scale: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """x: [T, K] to values of `kind` and the scale that gives x back, f32[T, 1] or f32[].

    Without a `scale` each row's largest magnitude becomes the largest value of the kind.
    """
    largest = LARGEST[kind]
    rows = x.astype(jnp.float32)
    if scale is None:
        scale = jnp.maximum(jnp.abs(rows).max(-1, keepdims=True), 1e-12) / largest
    scaled = jnp.clip(rows / scale, -largest, largest)
    return (jnp.round(scaled) if kind == "int8" else scaled).astype(ACTIVATIONS[kind]), scale
