"""The inner loop of a grouped product: rows of activations times outputs of one expert, in floating point or packed.

Packed weights are widened in registers, a block at a time, and never written anywhere. They are read in words of two
bytes (`words`). Codes of 4 bits make two products a block, of the even inputs and of the odd ones, which rows therefore
hold apart.
Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.triton_tile import Ref
from ..quant_matmul.triton_weight import widen_int4
from ..words import bytes_of
from .packed import as_scale, float8_value, small_float
from .triton_tiling import Product, Tiling

__all__ = ["load", "multiply"]

Sums = tuple[jax.Array, ...]


def multiply(
    rows_ref: Ref,
    weight_refs: tuple[Ref, ...],
    source: jax.Array,
    is_row: jax.Array,
    expert: jax.Array,
    n: jax.Array,
    end: jax.Array,
    *,
    product: Product,
    tiling: Tiling,
) -> Sums:
    """Rows `source` times outputs `n` of each of the P weights of the expert: P times f32[M, N].

    weight_refs: [X, K, P, N]; or packed the values [X, P, N, columns], scale and zero [X, P, N, G].
    """
    columns = product.K // product.packing.planes
    is_n = None if product.N % tiling.N == 0 else n < product.N
    step: Callable[[jax.Array, Sums], Sums]

    def block_of(block: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        k = block * tiling.K + lax.iota(jnp.int32, tiling.K)
        return k, None if columns % tiling.K == 0 else k < columns

    def load_rows(k: jax.Array, is_k: jax.Array | None) -> list[jax.Array]:
        planes = [()] if product.packing.planes == 1 else [(0,), (1,)]
        return [_load_block(rows_ref, (source, *plane, k), (is_row, is_k)) for plane in planes]

    def float_step(block: jax.Array, sums: Sums) -> Sums:
        k, is_k = block_of(block)
        (a,) = load_rows(k, is_k)
        weights = [_load_block(weight_refs[0], (k, half, n), (is_k, is_n), (expert,)) for half in range(product.P)]
        return tuple(total + _dot(a, weight) for total, weight in zip(sums, weights, strict=True))

    def packed_step(block: jax.Array, sums: Sums) -> Sums:
        k, is_k = block_of(block)
        rows = load_rows(k, is_k)
        totals = []
        word = block * (tiling.K // 2) + lax.iota(jnp.int32, tiling.K // 2)
        is_word = None if is_k is None else word < columns // 2
        for half, total in enumerate(sums):
            raw = bytes_of(_load_block(weight_refs[0], (half, n, word), (is_n, is_word), (expert,)))
            load_group = functools.partial(_load_groups, place=(expert, half, n), is_n=is_n, block=block)
            scale = as_scale(load_group(weight_refs[1], product=product, tiling=tiling))
            zero = None
            if product.packing.has_zero:
                zero = load_group(weight_refs[2], product=product, tiling=tiling)
            totals.append(_add_packed(total, rows, _numbers(raw, zero, product, rows[0].dtype), scale))
        return tuple(totals)

    step = packed_step if product.packing.kind else float_step
    zeros = tuple(jnp.zeros((tiling.M, tiling.N), jnp.float32) for _ in range(product.P))
    steps = jnp.where(end > 0, jnp.int32(pl.cdiv(columns, tiling.K)), jnp.int32(0))
    sums: Sums = lax.fori_loop(jnp.int32(0), steps, step, zeros)
    return sums


def _add_packed(total: jax.Array, rows: list[jax.Array], numbers: list[jax.Array], scale: jax.Array) -> jax.Array:
    """scale: f32[N, 1] of a block inside one group, or [N, columns]."""
    if scale.shape[1] > 1:
        scaled = [(number.astype(jnp.float32) * scale).astype(number.dtype) for number in numbers]
        return total + sum(_dot(a, weight, trans_b=True) for a, weight in zip(rows, scaled, strict=True))
    # The numbers are exact in 16 bits, and scaled after they are multiplied: fewer than they are, and in float32.
    parts = [_dot(a, number, trans_b=True) for a, number in zip(rows, numbers, strict=True)]
    return total + sum(parts) * scale.reshape(1, -1)


def _numbers(raw: jax.Array, zero: jax.Array | None, product: Product, dtype: jnp.dtype) -> list[jax.Array]:
    """What each plane's codes, less the zero point, stand for without the scale: exactly, in the type of the rows."""
    shift = None if zero is None else zero.astype(dtype)
    match product.packing.kind:
        case "mxfp4":
            numbers = [small_float(raw & 15).astype(dtype), small_float(raw >> 4).astype(dtype)]
        case "int4":
            return [widen_int4(each, dtype, shift) for each in (raw & jnp.uint8(15), raw >> jnp.uint8(4))]
        case "fp8" if product.has_fp8:
            numbers = [lax.bitcast_convert_type(raw, jnp.float8_e4m3fn).astype(dtype)]
        case "fp8":
            numbers = [float8_value(raw).astype(dtype)]
        case _:
            numbers = [raw.astype(dtype)]
    return numbers if shift is None else [number - shift for number in numbers]


def _load_groups(
    ref: Ref,
    *,
    place: tuple[jax.Array, int, jax.Array],
    is_n: jax.Array | None,
    block: jax.Array,
    product: Product,
    tiling: Tiling,
) -> jax.Array:
    """What belongs to the groups of a block, [N, 1] where one group holds it, else [N, columns]."""
    expert, half, n = place
    each = product.K // product.packing.planes // product.packing.groups  # columns of a group
    if product.packing.groups == 1 or each % tiling.K == 0:
        group = lax.div(block * tiling.K, each) if product.packing.groups > 1 else 0
        return load(ref, (expert, half, n, group), is_n).reshape(tiling.N, 1)
    count = tiling.K // each
    g = block * count + lax.iota(jnp.int32, count)
    block = _load_block(ref, (half, n, g), (is_n, g < product.packing.groups), (expert,))
    wide = lax.broadcast_in_dim(block, (tiling.N, count, each), (0, 1))
    return wide.reshape(tiling.N, tiling.K)


def _dot(a: jax.Array, b: jax.Array, *, trans_b: bool = False) -> jax.Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None  # no tf32
    product_sum: jax.Array = plt.dot(a, b, trans_b=trans_b, precision=precision)
    return product_sum


def _load_block(
    ref: Ref,
    index: tuple[jax.Array | int, ...],
    exists: tuple[jax.Array | None, jax.Array | None],
    first: tuple[jax.Array, ...] = (),
) -> jax.Array:
    """The block of an array whose axes are the two of `index` that are arrays; zeros where either does not exist."""
    sizes = [part.shape[0] for part in index if not isinstance(part, int)]
    axes = iter(range(2))
    wide = [part if isinstance(part, int) else lax.broadcast_in_dim(part, sizes, (next(axes),)) for part in index]
    masks = [lax.broadcast_in_dim(mask, sizes, (axis,)) for axis, mask in enumerate(exists) if mask is not None]
    return load(ref, (*first, *wide), functools.reduce(jnp.logical_and, masks) if masks else None)


def load(ref: Ref, index: tuple[jax.Array | int, ...], mask: jax.Array | None) -> jax.Array:
    """Zeros where the mask is not set."""
    loaded: jax.Array = plt.load(ref.at[index], mask=mask, other=None if mask is None else 0)
    return loaded
