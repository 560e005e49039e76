"""The pytrees that cross `jit`: what a step takes, what it keeps, and what it returns.

Axis letters: T tokens in a step, S rows (sequences) in a step, R slots (`max_num_seqs`), M snapshots, C cache groups,
P pages per sequence, N pages in the pool, B page size, K KV heads, D head dim, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention import AttentionPlan

pytree = partial(jax.tree_util.register_dataclass)


@pytree
@dataclass(frozen=True, slots=True)
class StepInput:
    """One ragged batch. Row s owns the tokens `query_start[s]:query_start[s + 1]`; padding rows own none."""

    token_ids: jax.Array
    """i32[T]; -1 means the newest token of the row's slot, still on the device."""
    slots: jax.Array
    """i32[S]; slot of each row, R for padding rows."""
    query_start: jax.Array
    """i32[S + 1]"""
    context_len: jax.Array
    """i32[S]; tokens of the row in the KV cache, those of this step included; 0 for padding rows."""
    page_updates: jax.Array
    """i32[U, 3]; (row of the page tables, index in the row, page); row C * R for padding."""


@dataclass(frozen=True, slots=True)
class CacheArray:
    """One of the arrays that a layer keeps in pages, [N, heads, B, width]: what a page of it takes and where it is."""

    heads: int
    width: int
    """Numbers of one head of one token."""
    dtype: jnp.dtype
    sharded: bool = True
    """Heads are dealt out over the devices; else every device keeps all of them."""


@dataclass(frozen=True, slots=True)
class SlotArray:
    """One of the arrays in which a layer keeps the state of each sequence, [R + M, heads, *size].

    The first R are those of the slots; behind them are snapshots, copies of states at the ends of pages.
    """

    heads: int
    """Or channels, where a state has no heads."""
    size: tuple[int, ...]
    """What one head of one sequence keeps."""
    dtype: jnp.dtype
    sharded: bool = True
    """Heads are dealt out over the devices; else every device keeps all of them."""


Weights = tuple[jax.Array, ...]
"""All parameters of a model, in the order of `weights.load.parameters`."""
LayerKV = tuple[jax.Array, ...]
"""The cache of one layer, pages and states: arrays in the order in which its `DecoderLayer.cache` names them."""


@pytree
@dataclass(frozen=True, slots=True)
class EngineState:
    """What lives on the device from step to step; donated to every step."""

    kv: tuple[LayerKV, ...]
    """The arrays of each lane, in which every cache group keeps a layer; where there is one group, of each layer."""
    page_table: jax.Array
    """i32[C * R, P]; page ids of each slot in order, one group after the other."""

    def like(self, leaves: Sequence[jax.Array]) -> Self:
        """A state of the same structure, from its `leaves`."""
        state: Self = jax.tree.unflatten(jax.tree.structure(self), leaves)
        return state

    @property
    def leaves(self) -> tuple[jax.Array, ...]:
        """The arrays of each lane, then the page table: what a program is called with. Making the tree of 32
        layers from the results of a step would cost more than the rest of the step's host time.
        """
        return tuple(jax.tree.leaves(self))


@pytree
@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Which tokens attend to which pages: row s owns the tokens `query_start[s]:query_start[s + 1]`."""

    page_table: jax.Array
    """i32[S, P]"""
    query_start: jax.Array
    """i32[S + 1]"""
    context_len: jax.Array
    """i32[S]"""


@pytree
@dataclass(frozen=True, slots=True)
class StateRows:
    """Which tokens follow which states."""

    slots: jax.Array
    """i32[S]; where each row's states are in a `SlotArray`; R + M, which is behind them all, for padding rows."""
    is_fresh: jax.Array
    """bool[S]; whether a row starts from zeros, whatever its slot holds: its sequence begins in this step."""
    row: jax.Array
    """i32[T]; the row of each token, any for padding."""
    index: jax.Array
    """i32[T]; which of its row's tokens in this step it is."""

    @classmethod
    def of(cls, slots: jax.Array, row: jax.Array, query_start: jax.Array, context_len: jax.Array) -> Self:
        """From the rows of a step as in `AttentionRows`."""
        index = jnp.arange(row.size) - query_start[row]
        return cls(slots, context_len == query_start[1:] - query_start[:-1], row, index)


@pytree
@dataclass(frozen=True, slots=True)
class StepContext:
    """What all layers of a cache group share in one step; computed once."""

    positions: jax.Array
    """i32[T]"""
    write_slots: jax.Array
    """i32[T]; page * B + offset of each token, N * B for padding."""
    is_real: jax.Array
    """bool[T]; false for padding."""
    rows: AttentionRows
    chunks: AttentionRows | None
    """`rows` of the layers that attend in chunks, with a row for each chunk; None where the group has none of them."""
    ropes: tuple[tuple[jax.Array, jax.Array], ...]
    """cos and sin, f32[T, R / 2], for each of `ModelConfig.ropes`; R dimensions of a head are rotated."""
    attention_plans: tuple[AttentionPlan | None, ...]
    """One for each of `ModelConfig.windows` that the group has, where the attention implementation has use for it."""
    layer_input: jax.Array | None = None
    """[T, P]; what the model gives the layer beside the residual, where it gives something."""
    states: StateRows | None = None
    """None where no layer keeps a state."""

    @property
    def is_decode(self) -> bool:
        """Every row has one token."""
        return self.positions.shape == self.rows.context_len.shape


@pytree
@dataclass(frozen=True, slots=True)
class TextContext:
    """The same for a step of S whole texts of L places each, whose tokens see each other both ways. T is S times L."""

    positions: jax.Array
    """i32[T]; from 0 in each text."""
    lengths: jax.Array
    """i32[S]; the places behind are padding."""
    seconds: jax.Array
    """i32[S]; place of the first token of a pair's second text, 0 where there is none."""
    ropes: tuple[tuple[jax.Array, jax.Array], ...]
    """As of `StepContext`."""

    @property
    def is_real(self) -> jax.Array:
        """bool[T]; false for padding."""
        return self.positions < self._of_each_token(self.lengths)

    @property
    def token_types(self) -> jax.Array:
        """i32[T]; 1 in the second text of a pair, else 0."""
        seconds = self._of_each_token(self.seconds)
        return ((seconds > 0) & (self.positions >= seconds)).astype(jnp.int32)

    def _of_each_token(self, of_texts: jax.Array) -> jax.Array:
        return jnp.repeat(of_texts, self.positions.size // self.lengths.size)


@pytree
@dataclass(frozen=True, slots=True)
class SamplingInput:
    """How each row's next token is chosen; one entry per row. See `protocol.SamplingParams`."""

    slots: jax.Array
    """i32[S]; R where the row does not sample in this step."""
    output_index: jax.Array
    """i32[S]; how many tokens the row had generated before this one."""
    seed: jax.Array
    """i32[S]"""
    top_k: jax.Array
    """i32[S]; V where off."""
    leaving: jax.Array
    """i32[S]; the token that leaves the row's window of penalties with this step; V where none does."""
    temperature: jax.Array
    """f32[S]; 0 is greedy."""
    top_p: jax.Array
    """f32[S]; 1 where off."""
    min_p: jax.Array
    """f32[S]; 0 where off."""
    repetition_penalty: jax.Array
    """f32[S]; 1 where off."""
    frequency_penalty: jax.Array
    """f32[S]"""
    presence_penalty: jax.Array
    """f32[S]"""


@pytree
@dataclass(frozen=True, slots=True)
class SamplingState:
    """Per slot, what logit edits need; read and written only by steps that have a row with edits."""

    output_counts: jax.Array
    """i16[R, V]; how often each token was generated, or stands in the row's window of penalties."""
    in_prompt: jax.Array
    """bool[R, V]"""
    bias: jax.Array
    """f32[R, V]; added to the logits."""
