"""Products with quantized weights on NVIDIA GPUs: packed weights are read once and unpacked in registers.

A program holds sums of outputs x rows (the weight is the left side, which tensor cores take from registers)
and goes over a share of the inputs; the shares of few rows, split so that all SMs are busy, are then summed
by XLA. Codes are multiplied as exact small numbers and scaled once a block, so no weight is ever rounded.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import H200, Target
from ..paged_attention.triton_tile import output
from .reference import round_rows
from .tiling import Product, Tiling, choose_splits, choose_tiling
from .triton_weight import Group, WeightTile, load, widen_fp8

__all__ = ["quant_matmul_triton"]

KINDS = {jnp.dtype(jnp.uint8): "int4", jnp.dtype(jnp.int8): "int8", jnp.dtype(jnp.float8_e4m3fn): "fp8"}
Ref = Any  # a Pallas reference: pallas exports no public name for it


def quant_matmul_triton(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    group_index: jax.Array | None = None,
    input_scale: jax.Array | None = None,
    *,
    activations: str = "float",
    tiling: Tiling | None = None,
    splits: int | None = None,
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Arguments as in `quant_matmul`; `tiling` and `splits` pin what else is chosen for `target`.

    Returns f32[T, N]. Raises NotImplementedError naming what is supported.
    """
    _check_support(x, values, zero)
    row_scale = None
    if activations != "float":
        x, row_scale = round_rows(x, activations, input_scale)
    (T, K), (N, G) = x.shape, scale.shape
    product = Product(T, N, K, G, KINDS[values.dtype], x.dtype, ordered=group_index is not None and G > 1)
    tiling = tiling or choose_tiling(product, target)
    splits = splits or choose_splits(product, tiling, target)
    optional = {"zero": zero, "group_index": group_index}
    optional = {name: array for name, array in optional.items() if array is not None}
    kernel = functools.partial(
        _kernel, product=product, tiling=tiling, splits=splits, names=tuple(optional), has_fp8=target.has_fp8
    )
    parts: jax.Array = pl.pallas_call(
        kernel,
        # Programs that share a part of the weight run one after the other.
        grid=(pl.cdiv(T, tiling.rows), pl.cdiv(N, tiling.outputs), splits),
        out_shape=output((splits, T, N), jnp.float32, values),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name=f"quant_matmul_{product.kind}",
    )(x, values, scale, *optional.values())
    y = parts[0] if splits == 1 else parts.sum(0)
    return y if row_scale is None else y * row_scale


def _check_support(x: jax.Array, values: jax.Array, zero: jax.Array | None) -> None:
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"the Triton kernel wants bfloat16, float16 or float32 rows; got {x.dtype}")
    if values.dtype not in KINDS:
        raise NotImplementedError(f"the Triton kernel reads uint8 (4 bits), int8 and float8_e4m3fn; got {values.dtype}")
    if zero is not None and KINDS[values.dtype] == "fp8":
        raise NotImplementedError("the Triton kernel supports zero points of integers only; got some of float8")
    if values.size >= 2**31:
        raise NotImplementedError(f"the Triton kernel supports weights of less than 2 GiB; got {values.size:,} bytes")


def _kernel(
    x_ref: Ref,
    values_ref: Ref,
    scale_ref: Ref,
    *refs: Ref,
    product: Product,
    tiling: Tiling,
    splits: int,
    names: tuple[str, ...],
    has_fp8: bool,
) -> None:
    *optional, out_ref = refs
    named = dict(zip(names, optional, strict=True))
    row, out, split = pl.program_id(0) * tiling.rows, pl.program_id(1) * tiling.outputs, pl.program_id(2)
    zero, order = named.get("zero"), named.get("group_index")
    weight = WeightTile(values_ref, scale_ref, zero, order, out, product, tiling, has_fp8)
    blocks = pl.cdiv(product.K, tiling.inputs)
    share = pl.cdiv(blocks, splits)
    first = split * share
    sums = _sum(x_ref, row, weight, first, jnp.minimum(first + share, blocks))
    n, m = (lax.broadcasted_iota(jnp.int32, sums.shape, axis) for axis in (0, 1))
    n, m = out + n, row + m
    where = (lax.broadcast(split, sums.shape), m, n)
    plt.store(out_ref.at[where], sums, mask=(m < product.T) & (n < product.N))


def _sum(x_ref: Ref, row: jax.Array, weight: WeightTile, first: jax.Array, end: jax.Array) -> jax.Array:
    """f32[outputs, rows], over the blocks of inputs from `first` to `end`."""
    product, shape = weight.product, (weight.tiling.outputs, weight.tiling.rows)
    sums = jnp.zeros(shape, jnp.int32 if weight.dtype == jnp.int8 else jnp.float32)

    def times(weights: list[jax.Array], block: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        rows = _load_rows(x_ref, row, block, weight)
        total = functools.reduce(jnp.add, map(_dot, weights, rows))
        if shift is None:
            return total
        # Not taken from each weight: what differs between outputs keeps their numbers out of the registers that
        # tensor cores read, and the way through shared memory is slower than the memory of an H200.
        whole = functools.reduce(jnp.add, (part.astype(jnp.float32).sum(1) for part in rows))
        return total - shift[:, None] * whole[None, :]

    if product.is_scaled_by_input:
        return lax.fori_loop(first, end, lambda block, sums: sums + times(weight.scaled(block), block), sums)
    group = weight.load_group(first, end)
    if product.G == 1:

        def step(block: jax.Array, sums: jax.Array) -> jax.Array:
            return sums + times(weight.numbers(block), block, group.shift)

        return lax.fori_loop(first, end, step, sums).astype(jnp.float32) * group.scale[:, None]

    def step_of_groups(block: jax.Array, carry: tuple[jax.Array, Group]) -> tuple[jax.Array, Group]:
        sums, group = carry
        sums += times(weight.numbers(block), block, group.shift) * group.scale[:, None]
        # Fetched a step early: the software pipeline leaves out loads of so few bytes.
        return sums, weight.load_group(block + 1, end)

    sums, _ = lax.fori_loop(first, end, step_of_groups, (sums, group))
    return sums


def _load_rows(x_ref: Ref, row: jax.Array, block: jax.Array, weight: WeightTile) -> list[jax.Array]:
    """The inputs of each part of a block, [rows, width]; zeros where there are none."""
    product, shape = weight.product, (weight.tiling.rows, weight.tiling.inputs)
    m, k = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    m, k = row + m, block * shape[1] + k
    mask = m < product.T if product.K % shape[1] == 0 else (m < product.T) & (k < product.K)
    x = load(x_ref, (m, k), mask)
    if x.dtype != weight.dtype:
        x = widen_fp8(x, weight.dtype)
    if product.codes_per_byte == 1:
        return [x]
    even, odd = lax.unstack(x.reshape(shape[0], -1, 2), axis=2)
    return [even, odd]


def _dot(weight: jax.Array, x: jax.Array) -> jax.Array:
    """[outputs, width] and [rows, width] to [outputs, rows], in int32 or float32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None  # no tf32
    product_sum: jax.Array = plt.dot(weight, x, trans_b=True, precision=precision)
    return product_sum
