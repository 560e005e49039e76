"""Which rows of which expert each tile of a grouped product owns, worked out on the device in a few small kernels.

A row is one (token, expert) pair; rows lie sorted by expert. Experts of another device and tokens of padding come
last and belong to no tile. Nothing here depends on the host, and shapes only on the number of pairs and experts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

__all__ = ["Route", "num_tiles", "route"]

COMPARED = 1024
"""Pairs up to which each is compared with each: two reductions that XLA fuses, where a sort takes many launches."""
BLOCK = 256
"""Pairs in a block. Of more than COMPARED, each is compared with those of its block only, and blocks are counted."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Route:
    """The rows of all experts, and the tiles that cover them: M rows of one expert at most."""

    order: jax.Array
    """i32[T * J]: the pair, t * J + j, of each row."""
    start: jax.Array
    """i32[X + 1]: the first row of each expert, and the end of the last."""
    last: jax.Array
    """i32[X]: tiles of all experts up to and with this one."""


def num_tiles(pairs: int, X: int, M: int) -> int:
    """The most tiles that any routing of so many pairs needs: full ones, and one that is not full for each expert."""
    return min(pairs, pairs // M + X)


def route(expert_ids: jax.Array, X: int, M: int) -> Route:
    """expert_ids: i32[T, J]; ids outside 0 .. X-1 are nobody's."""
    ids = jnp.where((expert_ids >= 0) & (expert_ids < X), expert_ids, X).reshape(-1).astype(jnp.int32)
    expert = jnp.arange(X + 1, dtype=jnp.int32)
    start = _count(ids[None, :] < expert[:, None])
    tiles = -(-jnp.diff(start) // M)
    last = jnp.where(expert[None, :X] <= expert[:X, None], tiles[None, :], 0).sum(1, dtype=jnp.int32)
    return Route(_order(ids) if ids.size <= COMPARED else _order_by_blocks(ids, start), start, last)


def _order(ids: jax.Array) -> jax.Array:
    """The stable argsort of i32[pairs]."""
    pair = jnp.arange(ids.size, dtype=jnp.int32)
    is_before = (ids[None, :] < ids[:, None]) | ((ids[None, :] == ids[:, None]) & (pair[None, :] < pair[:, None]))
    place = _count(is_before)
    return jnp.where(place[None, :] == pair[:, None], pair[None, :], 0).sum(1, dtype=jnp.int32)


def _order_by_blocks(ids: jax.Array, start: jax.Array) -> jax.Array:
    """Likewise; a pair's place is after the smaller experts, the blocks before, and those before it in its block."""
    X, pairs = start.size - 1, ids.size
    num_blocks = -(-pairs // BLOCK)
    blocks = jnp.pad(ids, (0, num_blocks * BLOCK - pairs), constant_values=X).reshape(num_blocks, BLOCK)
    block, place = jnp.arange(num_blocks, dtype=jnp.int32), jnp.arange(BLOCK, dtype=jnp.int32)
    counts = (blocks[:, None, :] == jnp.arange(X + 1, dtype=jnp.int32)[:, None]).sum(2, dtype=jnp.int32)
    is_before = block[None, :, None] < block[:, None, None]
    first = start + jnp.where(is_before, counts[None], 0).sum(1, dtype=jnp.int32)
    rank = ((blocks[:, None, :] == blocks[:, :, None]) & (place < place[:, None])).sum(2, dtype=jnp.int32)
    row = jnp.take_along_axis(first, blocks, axis=1, mode="clip") + rank
    pair = jnp.arange(blocks.size, dtype=jnp.int32)
    # No two pairs have one row, and those that fill up the last block have rows past the end.
    return jnp.zeros((pairs,), jnp.int32).at[row.reshape(-1)].set(pair, mode="drop", unique_indices=True)


def _count(mask: jax.Array) -> jax.Array:
    return mask.sum(1, dtype=jnp.int32)
