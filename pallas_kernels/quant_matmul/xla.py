"""Products with quantized weights in plain jax.numpy, wherever the Triton kernel does not run.

XLA fuses a weight with one scale per output (int8, fp8) into the product: 1 byte per weight is read. It does
not fuse groups: of group-wise int4 and block-wise fp8 it first writes out the whole weight in x's type, so a step
moves some nine times the packed bytes of int4, and holds one matrix of temporaries. A kernel spares that.

On a CPU, steps of up to `SMALL_BATCH_TOKENS` tokens multiply integers in one loop that reads the packed weight once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..paged_attention.target import Target
from .reference import round_rows
from .small_batch import small_batch_matmul

__all__ = ["quant_matmul_xla"]

SMALL_BATCH_TOKENS = 4
"""On a CPU; 4096 x 4096 in int8 takes 1.5, 3.0 and 4.9 ms for 1, 2 and 4 rows, and widened 24 to 30 ms."""


def quant_matmul_xla(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    group_index: jax.Array | None = None,
    input_scale: jax.Array | None = None,
    *,
    activations: str = "float",
) -> jax.Array:
    """Arguments as in `quant_matmul`. Returns f32[T, N]."""
    on_cpu = Target.current().platform == "cpu"
    if activations != "float":
        rows, row_scale = round_rows(x, activations, input_scale)
        return _product_of_rounded(rows, values, on_cpu, x.dtype) * row_scale * scale[:, 0].astype(jnp.float32)
    if on_cpu and x.shape[0] <= SMALL_BATCH_TOKENS and group_index is None:
        small = small_batch_matmul(x, values, scale, zero)
        if small is not None:
            return small
    if scale.shape[1] == 1:
        return _product_of_channels(x, values, scale[:, 0], zero)
    return _product_of_groups(x, values, scale, zero, group_index)


def _product_of_rounded(rows: jax.Array, values: jax.Array, on_cpu: bool, dtype: jnp.dtype) -> jax.Array:
    """Both sides in 8 bits; integers are summed exactly, into float32. On a GPU sums of float8 leave the library in
    bfloat16 where that is `dtype`, the type of the activations: the pass that scales them reads half the bytes then.
    """
    if rows.dtype == jnp.int8:
        return _dot(rows, values, jnp.int32).astype(jnp.float32)
    if on_cpu:
        return _dot(rows.astype(jnp.float32), _widen(values, jnp.float32))
    # Before they are scaled, sums are too large for float16.
    return _dot(rows, values, dtype if dtype == jnp.bfloat16 else jnp.float32).astype(jnp.float32)


def _product_of_channels(x: jax.Array, values: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The scale of an output is that of its sum: nothing but a conversion stands before the product."""

    def weight(codes: jax.Array, part: slice) -> jax.Array:
        return codes if zero is None else codes - zero.astype(x.dtype)

    return _of_parts(x, values, zero is None, weight) * scale.astype(jnp.float32)


def _product_of_groups(
    x: jax.Array, values: jax.Array, scale: jax.Array, zero: jax.Array | None, group_index: jax.Array | None
) -> jax.Array:
    inputs, groups = x.shape[1], scale.shape[1]

    def spread(of_groups: jax.Array, part: slice) -> jax.Array:
        """[N, G] to [N, inputs of the part]."""
        if group_index is not None:
            return of_groups[:, group_index[part]]
        count = len(range(*part.indices(inputs))) // groups
        return jnp.repeat(of_groups, count, axis=1, total_repeat_length=groups * count)

    def weight(codes: jax.Array, part: slice) -> jax.Array:
        # In float32 up to here: the weight is rounded to x's type once.
        wide = codes.astype(jnp.float32)
        if zero is not None:
            wide = wide - spread(zero.astype(jnp.float32), part)
        return (wide * spread(scale.astype(jnp.float32), part)).astype(x.dtype)

    return _of_parts(x, values, zero is None, weight)


def _of_parts(
    x: jax.Array, values: jax.Array, symmetric: bool, weight_of: Callable[[jax.Array, slice], jax.Array]
) -> jax.Array:
    """The product with `weight_of(codes, inputs that they belong to)`. Codes of 4 bits make two products, one
    of the even inputs and one of the odd ones, so that nothing has to be put in order.
    """
    if values.dtype != jnp.uint8:
        return _dot(x, weight_of(_widen(values, x.dtype), slice(None)))
    middle = 8 if symmetric else 0
    low, high = (values & 15).astype(x.dtype) - middle, (values >> 4).astype(x.dtype) - middle
    even, odd = slice(0, None, 2), slice(1, None, 2)
    return _dot(x[:, even], weight_of(low, even)) + _dot(x[:, odd], weight_of(high, odd))


def _widen(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int8 or float8 to a wider type, exactly."""
    if values.dtype == jnp.int8 or Target.current().platform != "cpu":
        return values.astype(dtype)
    # Twice as fast on a CPU as XLA's own conversion: the bits, shifted into float16's fields, are value / 2^8.
    bits = jax.lax.bitcast_convert_type(values, jnp.uint8).astype(jnp.uint16)
    half = jax.lax.bitcast_convert_type(((bits & 0x7F) << 7) | ((bits & 0x80) << 8), jnp.float16)
    return (half.astype(jnp.float32) * 256).astype(dtype)


def _dot(x: jax.Array, weight: jax.Array, sums: jnp.dtype = jnp.float32) -> jax.Array:
    """[T, K] and [N, K] to [T, N]."""
    exact = x.dtype == jnp.float32
    return jax.lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=sums,
    )
