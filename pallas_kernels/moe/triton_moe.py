"""The experts of a mixture on an NVIDIA GPU: two grouped products over the routed rows, each one launch.

The first gathers the tokens of its rows and activates gate and up before they leave the registers; the second weighs
its rows and writes them to their tokens' places, where one sum over the experts of a token ends the mixture. A program
owns one tile of rows of one expert and some outputs; programs past the live tiles read no weights.
Pallas Triton. Compiled and interpreted, never executed on a GPU.
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
from .packed import PackedExperts
from .route import Route, num_tiles, route
from .triton_tiling import Product, Tiling, choose_rows, choose_tiling

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
    if isinstance(gate_up, PackedExperts) or isinstance(down, PackedExperts):
        raise NotImplementedError("the Triton kernels want experts in floating point; got some in 8 or 4 bits")
    gate_up, down = _as_float(gate_up), _as_float(down)
    _check_support(x, gate_up, down, activate)
    (T, E), J = x.shape, expert_ids.shape[1]
    X, _, _, F = gate_up.shape
    M = choose_rows(T, J, X, x.dtype)
    routed = route(expert_ids, X, M)
    run = functools.partial(_launch, routed=routed, M=M, target=target, interpret=interpret)
    first = Product(X=X, J=J, K=E, N=F, P=2, activate=activate)
    inner = run(first, x, weights, gate_up, gate_up_bias)
    second = Product(X=X, J=J, K=F, N=E, P=1)
    parts = run(second, inner, weights, down.reshape(X, F, 1, E), down_bias)
    is_here = (expert_ids >= 0) & (expert_ids < X)  # nothing was written for the others
    return jnp.where(is_here[:, :, None], parts.reshape(T, J, E).astype(jnp.float32), 0).sum(1)


def _launch(
    product: Product,
    rows: jax.Array,
    router: jax.Array,
    stack: jax.Array,
    bias: jax.Array | None,
    *,
    routed: Route,
    M: int,
    target: Target,
    interpret: bool,
) -> jax.Array:
    """One grouped product, [T * J, N] in the type of `rows`; rows that belong to no expert stay unwritten."""
    pairs = routed.order.size
    tiling = choose_tiling(product, M, pairs, rows.dtype, target)
    given = () if bias is None else (_as_float(bias).reshape(product.X, product.P, product.N),)
    out: jax.Array = pl.pallas_call(
        functools.partial(_kernel, product=product, tiling=tiling),
        # Outputs vary fastest: the programs of one tile of rows run side by side and share its rows in the cache.
        grid=(pl.cdiv(product.N, tiling.N), num_tiles(pairs, product.X, M)),
        out_shape=output((pairs, product.N), rows.dtype, rows),
        compiler_params=plt.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        interpret=interpret,
        name="moe_gate_up" if product.activate else "moe_down",
    )(rows, router.reshape(-1), routed.order, routed.start, routed.last, stack, *given)
    return out


def _kernel(
    rows_ref: Ref,
    router_ref: Ref,
    order_ref: Ref,
    start_ref: Ref,
    last_ref: Ref,
    stack_ref: Ref,
    *refs: Ref,
    product: Product,
    tiling: Tiling,
) -> None:
    *bias_ref, out_ref = refs
    expert, row, end = _find_tile(start_ref, last_ref, product.X, tiling.M)
    row = row + lax.iota(jnp.int32, tiling.M)
    is_row = row < end
    # Rows that are not there have a place past the end: the interpreter writes all, and nobody's row over another's.
    pair = plt.load(order_ref.at[row], mask=is_row, other=order_ref.shape[0])
    is_first = product.activate is not None
    source = lax.div(pair, product.J) if is_first else row
    n = pl.program_id(0) * tiling.N + lax.iota(jnp.int32, tiling.N)
    sums = _multiply(rows_ref, stack_ref, source, is_row, expert, n, end, product=product, tiling=tiling)
    if bias_ref:
        sums = tuple(
            y + _load(bias_ref[0], (expert, half, n), n < product.N).astype(jnp.float32)[None, :]
            for half, y in enumerate(sums)
        )
    if product.activate is not None:
        y, place = product.activate(sums[0], sums[1]), row
    else:
        y, place = sums[0] * plt.load(router_ref.at[pair], mask=is_row, other=0)[:, None], pair
    shape = (tiling.M, tiling.N)
    mask = lax.broadcast_in_dim(is_row, shape, (0,)) & lax.broadcast_in_dim(n < product.N, shape, (1,))
    index = (lax.broadcast_in_dim(place, shape, (0,)), lax.broadcast_in_dim(n, shape, (1,)))
    plt.store(out_ref.at[index], y.astype(out_ref.dtype), mask=mask)


def _find_tile(start_ref: Ref, last_ref: Ref, X: int, M: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This program's expert, its first row, and the end of the expert's rows: 0 where there is nothing to do."""
    tile = pl.program_id(1)
    experts = lax.iota(jnp.int32, power_of_two(X))
    last = plt.load(last_ref.at[experts], mask=experts < X, other=jnp.iinfo(jnp.int32).max)
    is_over = last <= tile
    found = is_over.astype(jnp.int32).sum()
    before = jnp.where(is_over, last, 0).max()
    expert = jnp.minimum(found, X - 1)
    row = start_ref[expert] + (tile - before) * M
    return expert, row, jnp.where(found < X, start_ref[expert + 1], 0)


def _multiply(
    rows_ref: Ref,
    stack_ref: Ref,
    source: jax.Array,
    is_row: jax.Array,
    expert: jax.Array,
    n: jax.Array,
    end: jax.Array,
    *,
    product: Product,
    tiling: Tiling,
) -> tuple[jax.Array, ...]:
    """Rows `source` of [.., K] times outputs `n` of each of the P weights of the expert: P times f32[M, N]."""
    precision = lax.Precision.HIGHEST if rows_ref.dtype == jnp.float32 else None  # no tf32
    whole_k, whole_n = product.K % tiling.K == 0, product.N % tiling.N == 0

    def step(block: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        k = block * tiling.K + lax.iota(jnp.int32, tiling.K)
        is_k = None if whole_k else k < product.K
        a = _load_block(rows_ref, (), (source, k), (is_row, is_k))
        weights = [
            _load_block(stack_ref, (expert,), (k, half, n), (is_k, None if whole_n else n < product.N))
            for half in range(product.P)
        ]
        return tuple(
            total + plt.dot(a, weight, precision=precision) for total, weight in zip(sums, weights, strict=True)
        )

    zeros = tuple(jnp.zeros((tiling.M, tiling.N), jnp.float32) for _ in range(product.P))
    steps = jnp.where(end > 0, jnp.int32(pl.cdiv(product.K, tiling.K)), jnp.int32(0))
    found: tuple[jax.Array, ...] = lax.fori_loop(jnp.int32(0), steps, step, zeros)
    return found


def _load_block(
    ref: Ref,
    first: tuple[jax.Array, ...],
    index: tuple[jax.Array | int, ...],
    exists: tuple[jax.Array | None, jax.Array | None],
) -> jax.Array:
    """[first and last of `index`] of an array; zeros where either does not exist."""
    shape = (index[0].shape[0], index[-1].shape[0])  # type: ignore[union-attr]
    wide = [lax.broadcast_in_dim(index[0], shape, (0,)), *index[1:-1], lax.broadcast_in_dim(index[-1], shape, (1,))]
    masks = [lax.broadcast_in_dim(mask, shape, (axis,)) for axis, mask in enumerate(exists) if mask is not None]
    return _load(ref, (*first, *wide), functools.reduce(jnp.logical_and, masks) if masks else None)


def _load(ref: Ref, index: tuple[jax.Array | int, ...], mask: jax.Array | None) -> jax.Array:
    return plt.load(ref.at[index], mask=mask, other=None if mask is None else 0)


def _as_float(stack: jax.Array) -> jax.Array:
    """uint16 are the bits of bfloat16."""
    return lax.bitcast_convert_type(stack, jnp.bfloat16) if stack.dtype == jnp.uint16 else stack


def _check_support(
    x: jax.Array, gate_up: jax.Array, down: jax.Array, activate: Callable[[jax.Array, jax.Array], jax.Array]
) -> None:
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32) or {gate_up.dtype, down.dtype} != {x.dtype}:
        raise NotImplementedError(
            "the Triton kernels want tokens and experts all bfloat16, all float16 or all float32; "
            f"got tokens {x.dtype}, experts {gate_up.dtype} and {down.dtype}"
        )
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    if " erf " in str(jax.make_jaxpr(activate)(one, one)):
        raise NotImplementedError("the Triton kernels support activations without erf, such as silu and gelu's tanh")
