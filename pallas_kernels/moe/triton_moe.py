"""The experts of a mixture on an NVIDIA GPU: two grouped products over the routed rows, each one launch.

The first gathers the tokens of its rows and activates gate and up before they leave the registers; the second weighs
its rows and writes them to their tokens' places, where one sum over the experts of a token ends the mixture. A program
owns one tile of rows of one expert and some outputs; programs past the live tiles read no weights.
Pallas Triton. Compiled for sm_80, sm_90a and sm_100a, interpreted, never executed on a GPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from ..paged_attention.target import H200, Target
from ..paged_attention.triton_tile import Ref, output, power_of_two
from ..words import as_words
from .packed import PackedExperts
from .route import Route, num_tiles, route
from .triton_tiling import Packing, Product, Tiling, choose_rows, choose_tiling
from .triton_weights import load, multiply

__all__ = ["moe_triton"]


def moe_triton(
    x: jax.Array,
    expert_ids: jax.Array,
    weights: jax.Array,
    gate_up: jax.Array | PackedExperts,
    down: jax.Array | PackedExperts,
    gate_up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activate: Callable[[jax.Array, jax.Array], jax.Array],
    target: Target = H200,
    interpret: bool = False,
) -> jax.Array:
    """Shapes as in `moe`; returns f32[T, E]. Raises NotImplementedError naming the supported types."""
    _check_support(x, (gate_up, down), activate)
    (T, E), J, X = x.shape, expert_ids.shape[1], gate_up.shape[0]
    F = down.shape[2] if isinstance(down, PackedExperts) else down.shape[1]
    M = choose_rows(T, J, X, x.dtype)
    routed = route(expert_ids, X, M)
    run = functools.partial(_launch, routed=routed, M=M, target=target, interpret=interpret)
    product = functools.partial(Product, X, J, has_fp8=target.has_fp8)
    second = product(K=F, N=E, P=1, packing=_packing(down))
    first = product(K=E, N=F, P=2, packing=_packing(gate_up), activate=activate, out_planes=second.packing.planes)
    rows = x if first.packing.planes == 1 else x.reshape(T, -1, 2).swapaxes(1, 2)
    inner = run(first, rows, weights, gate_up, gate_up_bias)
    parts = run(second, inner, weights, down, down_bias)
    is_here = (expert_ids >= 0) & (expert_ids < X)  # nothing was written for the others
    return jnp.where(is_here[:, :, None], parts.reshape(T, J, E).astype(jnp.float32), 0).sum(1)


def _launch(
    product: Product,
    rows: jax.Array,
    router: jax.Array,
    stack: jax.Array | PackedExperts,
    bias: jax.Array | None,
    *,
    routed: Route,
    M: int,
    target: Target,
    interpret: bool,
) -> jax.Array:
    """One grouped product, [T * J, N] in the type of `rows`; rows that belong to no expert stay unwritten.

    Where the next product wants even and odd inputs apart it is [T * J, 2, N / 2].
    """
    pairs, (X, P, N) = routed.order.size, (product.X, product.P, product.N)
    tiling = choose_tiling(product, M, pairs, rows.dtype, target)
    if isinstance(stack, PackedExperts):
        values, *others = (array.reshape(X, P, N, -1) for array in stack.arrays().values())
        arrays = [as_words(values), *others]
    else:
        arrays = [_as_float(stack).reshape(X, product.K, P, N)]
    biases = [] if bias is None else [_as_float(bias).reshape(X, P, N)]
    shape = (pairs, N) if product.out_planes == 1 else (pairs, 2, N // 2)
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, product=product, tiling=tiling),
        # Outputs vary fastest: the programs of one tile of rows run side by side and share its rows in the cache.
        grid=(pl.cdiv(N, tiling.N), num_tiles(pairs, X, M)),
        out_shape=output(shape, rows.dtype, rows),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="moe_gate_up" if product.activate else "moe_down",
    )(rows, router.reshape(-1), routed.order, routed.start, routed.last, *arrays, *biases)
    return out


def _kernel(
    rows_ref: Ref,
    router_ref: Ref,
    order_ref: Ref,
    start_ref: Ref,
    last_ref: Ref,
    *refs: Ref,
    product: Product,
    tiling: Tiling,
) -> None:
    count, out_ref = product.packing.num_arrays, refs[-1]
    weight_refs, bias_ref = refs[:count], refs[count:-1]
    expert, row, end = _find_tile(start_ref, last_ref, product.X, tiling.M)
    row = row + lax.iota(jnp.int32, tiling.M)
    is_row = row < end
    # Rows that are not there have a place past the end: the interpreter writes all, and nobody's row over another's.
    pair = plt.load(order_ref.at[row], mask=is_row, other=order_ref.shape[0])
    is_first = product.activate is not None
    source = lax.div(pair, product.J) if is_first else row
    n = pl.program_id(0) * tiling.N + lax.iota(jnp.int32, tiling.N)
    sums = multiply(rows_ref, weight_refs, source, is_row, expert, n, end, product=product, tiling=tiling)
    if bias_ref:
        sums = tuple(
            y + load(bias_ref[0], (expert, half, n), n < product.N).astype(jnp.float32)[None, :]
            for half, y in enumerate(sums)
        )
    if product.activate is not None:
        y, place = product.activate(sums[0], sums[1]), row
    else:
        y, place = sums[0] * plt.load(router_ref.at[pair], mask=is_row, other=0)[:, None], pair
    shape = (tiling.M, tiling.N)
    mask = lax.broadcast_in_dim(is_row, shape, (0,)) & lax.broadcast_in_dim(n < product.N, shape, (1,))
    planes = (n,) if product.out_planes == 1 else (lax.rem(n, 2), lax.div(n, 2))
    index = [lax.broadcast_in_dim(place, shape, (0,)), *(lax.broadcast_in_dim(part, shape, (1,)) for part in planes)]
    plt.store(out_ref.at[tuple(index)], y.astype(out_ref.dtype), mask=mask)


def _find_tile(start_ref: Ref, last_ref: Ref, X: int, M: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This program's expert, its first row, and the end of the expert's rows: 0 where there is nothing to do."""
    tile = pl.program_id(1)
    experts = lax.iota(jnp.int32, power_of_two(X))
    last = plt.load(last_ref.at[experts], mask=experts < X, other=jnp.iinfo(jnp.int32).max)
    is_over = last <= tile
    num_before = is_over.astype(jnp.int32).sum()
    before = jnp.where(is_over, last, 0).max()
    expert = jnp.minimum(num_before, X - 1)
    row = start_ref[expert] + (tile - before) * M
    return expert, row, jnp.where(num_before < X, start_ref[expert + 1], 0)


def _as_float(stack: jax.Array) -> jax.Array:
    """uint16 are the bits of bfloat16."""
    return lax.bitcast_convert_type(stack, jnp.bfloat16) if stack.dtype == jnp.uint16 else stack


def _packing(stack: jax.Array | PackedExperts) -> Packing:
    if isinstance(stack, PackedExperts):
        return Packing(stack.kind, stack.scale.shape[-1], stack.zero is not None)
    return Packing()


def _check_support(
    x: jax.Array,
    stacks: tuple[jax.Array | PackedExperts, ...],
    activate: Callable[[jax.Array, jax.Array], jax.Array],
) -> None:
    for stack in stacks:
        if isinstance(stack, PackedExperts):
            each = stack.shape[-1] // stack.scale.shape[-1]
            if stack.values.shape[-1] % 2:
                raise NotImplementedError(
                    f"the Triton kernels read two bytes of a weight at once; got {stack.shape[-1]} inputs"
                )
            if stack.scale.shape[-1] > 1 and each & (each - 1):
                raise NotImplementedError(f"the Triton kernels support groups of a power of two inputs; got {each}")
        elif _as_float(stack).dtype != x.dtype:
            raise NotImplementedError(
                f"the Triton kernels want experts in the type of the tokens, or packed; got {stack.dtype} for {x.dtype}"
            )
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"the Triton kernels want bfloat16, float16 or float32; got {x.dtype}")
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    if " erf" in str(jax.make_jaxpr(activate)(one, one)):
        raise NotImplementedError("the Triton kernels support activations without erf, such as silu and gelu's tanh")
