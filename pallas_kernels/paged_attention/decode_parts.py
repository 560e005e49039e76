"""How decode cuts the keys of each row into parts, and which parts a program computes.

A row's parts follow from its own length and from shapes, so a result does not change with the lengths of its
neighbours. The parts of all rows are numbered one row after the other, and programs take them in turns: how many
programs there are follows from the batch and the GPU, and not from the longest context that is allowed.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

__all__ = ["PROGRAMS_PER_CORE", "Splitting", "choose_splitting", "find_part", "part_ends", "part_table"]

Ref = Any  # a Pallas reference: pallas exports no public name for it
PROGRAMS_PER_CORE = 3  # what shared memory lets run at once on one SM; fewer leave its loads waiting
MIN_BLOCKS = 2  # below this a part's own start costs more than the keys it reads
MAX_KEYS_A_PART = 4096  # so that one long row among many short ones does not run alone at the end


@dataclass(frozen=True, slots=True)
class Splitting:
    """Blocks of C keys; `wanted` parts a row fill the GPU, and no row has more than `most`.

    programs: for each KV head, or tile of heads. pieces: that a program makes of each part.
    """

    C: int
    window: int | None
    wanted: int
    most: int
    programs: int
    pieces: int = 1

    def live_blocks(self, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First and end block of C keys that the query at position length - 1 sees."""
        first = jnp.zeros_like(length) if self.window is None else lax.div(jnp.maximum(length - self.window, 0), self.C)
        return first, lax.div(length + (self.C - 1), self.C)

    def share(self, length: jax.Array) -> jax.Array:
        """Blocks of each part of a row, but the last."""
        first, end = self.live_blocks(length)
        parts = jnp.maximum(self.wanted, _cdiv(end - first, pl.cdiv(MAX_KEYS_A_PART, self.C)))
        return jnp.maximum(lax.div(end - first + (self._cap(parts) - 1), self._cap(parts)), MIN_BLOCKS)

    def parts(self, length: jax.Array) -> jax.Array:
        """How many there are; 0 of an empty row."""
        first, end = self.live_blocks(length)
        share = self.share(length)
        return lax.div(end - first + (share - 1), share)

    def blocks(self, length: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first block of a part and its end."""
        first, end = self.live_blocks(length)
        first = first + part * self.share(length)
        return first, jnp.minimum(first + self.share(length), end)

    def _cap(self, parts: jax.Array) -> jax.Array:
        return jnp.minimum(parts, self.most)


def choose_splitting(
    rows: int,
    heads: int,
    keys: int,
    C: int,
    window: int | None,
    num_cores: int,
    *,
    most: int,
    per_core: int = PROGRAMS_PER_CORE,
) -> Splitting:
    """For rows of at most `keys` keys that `heads` programs each attend to; most: parts that can be combined."""
    fill = per_core * num_cores
    useful = pl.cdiv(min(keys, window or keys), C * MIN_BLOCKS)
    wanted = max(1, min(fill // (rows * heads), useful, most))
    most = max(wanted, min(pl.cdiv(min(keys, window or keys), MAX_KEYS_A_PART), most))
    return Splitting(C, window, wanted, most, min(rows * most, max(rows * wanted, fill // heads)))


def part_ends(len_ref: Ref, splitting: Splitting) -> jax.Array:
    """The number of parts of all rows up to and with each, i32[a power of two from 32 on, at least the rows]."""
    row = lax.iota(jnp.int32, max(32, 1 << (len_ref.shape[0] - 1).bit_length()))
    length = plt.load(len_ref.at[row], mask=row < len_ref.shape[0], other=0)
    return lax.cumsum(splitting.parts(length))


def find_part(ends: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row of a part, and its number within the row."""
    is_before = ends <= number
    return is_before.astype(jnp.int32).sum(0), number - jnp.where(is_before, ends, 0).max(0)


def part_table(context_len: jax.Array, splitting: Splitting) -> jax.Array:
    """Row, number within the row, first block and end of each part, i32[most parts of all rows + 1, 4].

    The last line begins with how many there are. The same in all layers: XLA works it out once a step.
    """
    parts = splitting.parts(context_len)
    ends = jnp.cumsum(parts)
    number = jnp.arange(context_len.shape[0] * splitting.most)
    row = jnp.minimum((ends[None, :] <= number[:, None]).sum(1), context_len.shape[0] - 1)
    part = number - (ends - parts)[row]
    table = jnp.stack([row, part, *splitting.blocks(context_len[row], part)], axis=1)
    return jnp.append(table, jnp.full((1, 4), ends[-1]), axis=0).astype(jnp.int32)


def _cdiv(a: jax.Array, b: int) -> jax.Array:
    return lax.div(a + (b - 1), b)
