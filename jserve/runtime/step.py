"""The step: one ragged batch through the model, as one function to compile per bucket.

    1. enter new page-table entries; 2. find each token's row, position and page; 3. embed;
    4. every layer writes its keys and values into its pages and attends; 5. logits of each row's last token.

A mixed step also returns what its layers end with, for those who read more of the prompt than its last token.

A layer is an inner `jax.jit` that is called once per layer: traced once per kind of layer, and the compiler
sees the layers unrolled, each with its own weights and its own pages (nothing stacked, nothing copied). Layers of
different cache groups may have their pages in the same arrays, which one after the other updates in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jserve.batch import AttentionRows, EngineState, LayerKV, StateRows, StepContext, StepInput, Weights
from jserve.config import ModelConfig
from jserve.layers.rope import inverse_frequencies, rope_table
from jserve.models.causal_lm import CausalLM, DecoderLayer
from jserve.runtime.chunks import chunk_rows
from jserve.runtime.layout import CacheLayout
from jserve.runtime.shapes import Bucket, EngineShape
from pallas_kernels.paged_attention import AttentionPlan, prepare

Vector = TypeVar("Vector", jax.Array, np.ndarray)


@dataclass(frozen=True, slots=True)
class StepLayout:
    """How a `StepInput` of a bucket lies in one i32 vector, so that one copy takes it to the device."""

    bucket: Bucket
    updates: int

    @property
    def size(self) -> int:
        return self.bucket.tokens + 3 * self.bucket.rows + 1 + 3 * self.updates

    def parts(self, packed: Vector) -> tuple[Vector, Vector, Vector, Vector, Vector]:
        """i32[size] to token_ids, slots, query_start, context_len and the flat page_updates; views in numpy."""
        slots = self.bucket.tokens
        starts = slots + self.bucket.rows
        lengths = starts + self.bucket.rows + 1
        updates = lengths + self.bucket.rows
        return packed[:slots], packed[slots:starts], packed[starts:lengths], packed[lengths:updates], packed[updates:]

    def split(self, packed: jax.Array) -> StepInput:
        """i32[size] to its fields."""
        token_ids, slots, query_start, context_len, updates = self.parts(packed)
        return StepInput(token_ids, slots, query_start, context_len, updates.reshape(self.updates, 3))


def make_step(
    model: CausalLM, config: ModelConfig, shape: EngineShape, bucket: Bucket, implementation: str = "auto"
) -> Callable[[Weights, EngineState, jax.Array, jax.Array], tuple[EngineState, jax.Array, jax.Array | None]]:
    """The function to compile for one bucket: (weights, state, last_token, packed) to (state, logits, hidden).

    `model` is abstract; `weights` are its leaves; `implementation` is that of the attention. last_token:
    i32[R]; packed: i32 of `StepLayout`; logits: f32[S, V] of the last token of each row; hidden: [T, E] of all
    tokens before the final norm, None from a decode bucket.
    """
    graph, abstract = nnx.split(model, nnx.Param)
    structure = jax.tree.structure(abstract)
    layout = StepLayout(bucket, shape.page_updates(bucket))
    cache = CacheLayout.of(config.layer_windows, shape.windows)
    ropes = [inverse_frequencies(rope, config.head_dim, shape.max_model_len) for rope in config.ropes]

    def step(
        weights: Weights, state: EngineState, last_token: jax.Array, packed: jax.Array
    ) -> tuple[EngineState, jax.Array, jax.Array | None]:
        built = nnx.merge(graph, jax.tree.unflatten(structure, weights))
        batch = layout.split(packed)
        slot, index, page = batch.page_updates.T
        page_table = state.page_table.at[slot, index].set(page, mode="drop")
        row, positions = _locate(batch, bucket)
        rope_tables = tuple(rope_table(positions, frequencies, factor) for frequencies, factor in ropes)
        tables = page_table.reshape(shape.num_groups, -1, shape.pages_per_sequence)
        states = _state_rows(batch, row, shape)
        contexts = []
        for group in range(shape.num_groups):
            table = jnp.take(tables[group], batch.slots, axis=0, mode="clip")
            rows = AttentionRows(table, batch.query_start, batch.context_len)
            windows = config.windows if shape.num_groups == 1 else (shape.windows[group],)
            chunks = chunk_rows(rows, bucket, windows, shape.page_size) if config.windows_are_chunks else None
            write_slots = _write_slots(batch, tables[group], row, positions, shape)
            context = StepContext(
                positions=positions,
                write_slots=write_slots,
                is_real=write_slots < shape.num_pages * shape.page_size,
                rows=rows,
                chunks=chunks,
                ropes=rope_tables,
                attention_plans=_attention_plans(rows, chunks, windows, bucket, shape, config, implementation),
                states=states,
            )
            contexts.append(context)
        newest = jnp.take(last_token, batch.slots[row], mode="clip")
        token_ids = jnp.where(batch.token_ids < 0, newest, batch.token_ids)
        x = built.embed(token_ids, positions)
        inputs = built.layer_inputs(token_ids, x)
        kv = list(state.kv)
        for number, (layer, group) in enumerate(zip(built.layers, cache.groups, strict=True)):
            lane, context = cache.lanes[config.kv_source(number)], contexts[group]
            if inputs is not None:
                context = replace(context, layer_input=inputs[:, number])
            x, kv[lane] = _apply_layer(*nnx.split(layer), x, kv[lane], context)
        state = EngineState(tuple(kv), page_table)
        if bucket.is_decode:
            return state, built.logits(x), None
        last = jnp.take(x, jnp.maximum(batch.query_start[1:] - 1, 0), axis=0)
        return state, built.logits(last), x

    return step


def _apply_layer_untraced(
    graph: nnx.GraphDef[DecoderLayer], weights: nnx.State, x: jax.Array, kv: LayerKV, context: StepContext
) -> tuple[jax.Array, LayerKV]:
    return nnx.merge(graph, weights)(x, kv, context)


_apply_layer = jax.jit(_apply_layer_untraced, static_argnums=0)


def _locate(batch: StepInput, bucket: Bucket) -> tuple[jax.Array, jax.Array]:
    """Row and position of every token, i32[T] each. Padding tokens get the last row and some position."""
    if bucket.is_decode:
        return jnp.arange(bucket.rows), jnp.maximum(batch.context_len - 1, 0)
    token = jnp.arange(bucket.tokens)
    row = jnp.searchsorted(batch.query_start[1:], token, side="right", method="compare_all")
    row = jnp.minimum(row, bucket.rows - 1)
    return row, jnp.maximum(batch.context_len[row] - batch.query_start[row + 1] + token, 0)


def _state_rows(batch: StepInput, row: jax.Array, shape: EngineShape) -> StateRows | None:
    if shape.num_snapshots is None:
        return None
    slots = jnp.where(batch.slots < shape.max_num_seqs, batch.slots, shape.num_states)
    return StateRows.of(slots, row, batch.query_start, batch.context_len)


def _attention_plans(
    rows: AttentionRows,
    chunks: AttentionRows | None,
    of_group: tuple[int | None, ...],
    bucket: Bucket,
    shape: EngineShape,
    config: ModelConfig,
    implementation: str,
) -> tuple[AttentionPlan | None, ...]:
    """See `StepContext`; `of_group` are the windows of its layers."""
    sizes = {"tokens": bucket.tokens, "pages": shape.num_pages, "page_size": shape.page_size}

    def plan(window: int | None) -> AttentionPlan | None:
        seen = rows if window is None or chunks is None else chunks
        return prepare(
            seen.page_table,
            seen.query_start,
            seen.context_len,
            sliding_window=window if seen is rows else None,
            decode=bucket.is_decode,
            implementation=implementation,
            **sizes,
        )

    return tuple(plan(window) if window in of_group else None for window in config.windows)


def _write_slots(
    batch: StepInput, page_table: jax.Array, row: jax.Array, positions: jax.Array, shape: EngineShape
) -> jax.Array:
    """Where each token's key and value go, i32[T]: page * B + offset; N * B where the token is padding."""
    table = page_table.at[batch.slots[row], positions // shape.page_size]
    page = table.get(mode="fill", fill_value=shape.num_pages)
    is_real = (jnp.arange(row.size) < batch.query_start[-1]) & (batch.context_len[row] > 0)
    slots = page * shape.page_size + positions % shape.page_size
    return jnp.where(is_real, slots, shape.num_pages * shape.page_size)
