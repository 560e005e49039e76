"""A mixture's experts in plain jax.numpy: sort what is routed by expert, then one small product per tile of rows.

A tile is up to C rows of one expert. The loop over tiles ends where the work of this step ends, so an expert that
nobody chose is never read, and the work follows T * J, not X. `jax.lax.ragged_dot` says the same in one line,
but XLA expands it over all experts, on a CPU and on a GPU: 8 to 120 times the time of this loop on two cores (2 to
256 tokens, 4 each of 32 experts, E 512, F 768, float32).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from ..paged_attention.target import Target
from .packed import PackedExperts, product
from .reference import as_float32

__all__ = ["moe_xla"]

FEWEST_ROWS = 8  # products of 2 to 8 rows take the same time: that of reading the weights
MOST_ROWS = 64
CHUNK_BYTES = 16 << 20  # of an expert's weights that are copied at a time on a CPU: they stay in its last cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class _Tiles:
    """The tiles of a step, the live ones first, in the order of their experts and then of their rows."""

    expert: jax.Array  # i32[M]
    row: jax.Array  # i32[M] the first; a tile that reaches into the next expert's rows comes before its tiles
    count: jax.Array  # i32[]


def moe_xla(
    x: jax.Array,
    expert_ids: jax.Array,
    weights: jax.Array,
    gate_up: jax.Array | PackedExperts,
    down: jax.Array | PackedExperts,
    gate_up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activate: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Shapes as in `moe`; returns f32[T, E]."""
    (T, E), J, X = x.shape, expert_ids.shape[1], gate_up.shape[0]
    if not isinstance(gate_up, PackedExperts):
        gate_up = gate_up.reshape(X, E, -1)
    ids = jnp.where((expert_ids >= 0) & (expert_ids < X), expert_ids, X).reshape(-1)
    order = jnp.argsort(ids, stable=True)
    C = _tile_rows(T, J, X)
    tiles = _tiles(ids[order], X, C)
    rows = jnp.pad(x[order // J], ((0, C), (0, 0)))

    def tile(i: jax.Array, out: jax.Array) -> jax.Array:
        expert, row = tiles.expert[i], tiles.row[i]
        both = _product(lax.dynamic_slice_in_dim(rows, row, C), gate_up, expert).reshape(C, 2, -1)
        if gate_up_bias is not None:
            both += as_float32(lax.dynamic_index_in_dim(gate_up_bias, expert, keepdims=False))
        y = _product(activate(both[:, 0], both[:, 1]).astype(x.dtype), down, expert)
        if down_bias is not None:
            y += as_float32(lax.dynamic_index_in_dim(down_bias, expert, keepdims=False))
        return lax.dynamic_update_slice_in_dim(out, y, row, 0)

    out: jax.Array = lax.fori_loop(0, tiles.count, tile, jnp.zeros((T * J + C, E)))
    parts = out[jnp.argsort(order)].reshape(T, J, E)
    is_here = (ids < X).reshape(T, J, 1)  # what a tile left behind its last row may stand in the others
    return jnp.where(is_here, parts * weights[:, :, None], 0).sum(1)


def _tile_rows(T: int, J: int, X: int) -> int:
    """C: twice the rows that an expert has on average, within bounds; no expert has more than T."""
    wanted = 1 << (2 * T * J // X).bit_length()
    return min(max(FEWEST_ROWS, min(wanted, MOST_ROWS)), T)


def _tiles(ids: jax.Array, X: int, C: int) -> _Tiles:
    """ids: i32[T * J], ascending; X where a row is nobody's."""
    start = jnp.searchsorted(ids, jnp.arange(X + 1), method="compare_all" if ids.size <= 64 else "scan")
    tiles_of = -(-jnp.diff(start) // C)
    last = jnp.cumsum(tiles_of)
    tile = jnp.arange(min(ids.size, ids.size // C + X))
    expert = jnp.minimum(jnp.searchsorted(last, tile, side="right"), X - 1)
    row = start[expert] + (tile - last[expert] + tiles_of[expert]) * C
    return _Tiles(expert.astype(jnp.int32), row.astype(jnp.int32), last[-1])


def _product(rows: jax.Array, stack: jax.Array | PackedExperts, expert: jax.Array) -> jax.Array:
    """rows: [C, inputs] times stack[expert], [inputs, outputs], or packed [outputs, inputs]; f32[C, outputs]."""
    if isinstance(stack, PackedExperts):
        return product(rows, stack.expert(expert))
    if Target.current().platform == "cpu":
        return _product_on_cpu(rows.astype(jnp.float32), stack, expert)
    weight = lax.dynamic_index_in_dim(stack, expert, keepdims=False)
    precision = "highest" if stack.dtype == jnp.float32 else None
    return jnp.dot(rows.astype(stack.dtype), weight, precision=precision, preferred_element_type=jnp.float32)


def _product_on_cpu(rows: jax.Array, stack: jax.Array, expert: jax.Array) -> jax.Array:
    """In float32, and in runs of inputs: a product wants its weights copied out of the stack."""
    C, inputs = rows.shape
    outputs = stack.shape[2]
    step = inputs
    while step % 2 == 0 and step * outputs * 4 > CHUNK_BYTES:
        step //= 2

    def add(i: jax.Array | int, total: jax.Array) -> jax.Array:
        weight = lax.dynamic_slice(stack, (expert, i * step, 0), (1, step, outputs))[0]
        part = lax.dynamic_slice_in_dim(rows, i * step, step, 1)
        return total + jnp.dot(part, as_float32(weight), precision="highest")

    start = jnp.zeros((C, outputs))
    return add(0, start) if step == inputs else lax.fori_loop(0, inputs // step, add, start)
