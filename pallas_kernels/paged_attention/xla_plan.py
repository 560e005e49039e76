"""What `xla.attend` does in a step, worked out once from the batch's shape and shared by all its layers.

Owns the work lists: which run of pages goes with which query. Never touches queries, keys or values.
The sizes below were measured on two cores with AVX-512 at H=9, K=3, D=64, float32, pages of 16 and 32.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

__all__ = ["AttentionPlan", "Items", "Tiles", "make_plan"]

SHORT_QUERIES = 4  # rows with up to so many queries go query by query: a tile would be mostly empty
ITEM_TOKENS = 128  # keys of one item (a page, where pages are larger)
ITEMS_PER_TURN = 16
TILE_QUERIES = 64
RUN_TOKENS = 128  # keys that a tile meets at a time


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Items:
    """One query and one run of pages each, in the order of the queries; the unused tail sees nothing."""

    entry: jax.Array  # i32[I] which short query; past them all in the tail
    pages: jax.Array  # i32[I, C/B] in range
    start: jax.Array  # i32[I] position of the run's first key
    low: jax.Array  # i32[I] the query sees the positions low <= p < high
    high: jax.Array  # i32[I]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Tiles:
    """Up to Q neighbouring queries of one row each, the live tiles first."""

    row: jax.Array  # i32[M]
    token: jax.Array  # i32[M] the first query
    num_queries: jax.Array  # i32[M]
    position: jax.Array  # i32[M] of the first query
    start: jax.Array  # i32[M] position of the first key to load, where a page starts
    low: jax.Array  # i32[M] some query sees the positions low <= p < high
    high: jax.Array  # i32[M]
    num_runs: jax.Array  # i32[M]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The work lists of one step; `make_plan` makes it, `xla.attend` follows it in every layer."""

    page_table: jax.Array  # i32[S, P + spare], in range
    items: Items
    num_turns: jax.Array  # i32[] how often ITEMS_PER_TURN items are taken
    entry_token: jax.Array  # i32[U] the token of each short query, in range also where unused
    token_entry: jax.Array  # i32[T] and back
    is_short: jax.Array  # bool[T]
    tiles: Tiles | None  # None where no row can be long
    num_tiles: jax.Array  # i32[]
    page_size: int = field(metadata={"static": True})
    item_tokens: int = field(metadata={"static": True})
    items_per_turn: int = field(metadata={"static": True})
    run_tokens: int = field(metadata={"static": True})
    tile_queries: int = field(metadata={"static": True})
    sliding_window: int | None = field(metadata={"static": True})


def make_plan(
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    tokens: int,
    pages: int,
    page_size: int,
    sliding_window: int | None = None,
    decode: bool = False,
) -> AttentionPlan:
    """Turn the rows of a step into work lists: once a step, or once for each sliding window that layers use.

    page_table: i32[S, P]; query_start: i32[S+1]; context_len: i32[S], as in `paged_attention`; tokens: T;
    pages: N; page_size: B; decode: row s owns exactly token s.
    """
    S = context_len.shape[0]
    item_tokens, run_tokens = (max(page_size, n // page_size * page_size) for n in (ITEM_TOKENS, RUN_TOKENS))
    spare = max(item_tokens, run_tokens) // page_size  # a run may reach past the table's last page
    page_table = jnp.pad(jnp.clip(page_table, 0, pages - 1), ((0, 0), (0, spare)))

    row, position, is_short = _queries(query_start, context_len, tokens, decode)
    U = tokens if decode else min(tokens, SHORT_QUERIES * S)
    entry_token = jnp.nonzero(is_short, size=U, fill_value=tokens)[0]
    at = jnp.minimum(entry_token, tokens - 1)
    high = jnp.where(entry_token < tokens, position[at] + 1, 0)
    items_per_turn = max(2, min(ITEMS_PER_TURN, 2 * U))
    items, num_items = _items(page_table, row[at], high, page_size, item_tokens, items_per_turn, sliding_window)

    count = _tile_counts(query_start)
    has_tiles = not decode and tokens > SHORT_QUERIES
    return AttentionPlan(
        page_table=page_table,
        items=items,
        num_turns=-(-num_items // items_per_turn),
        entry_token=at,
        token_entry=jnp.maximum(jnp.cumsum(is_short) - 1, 0),
        is_short=is_short,
        tiles=_tiles(query_start, context_len, count, tokens, page_size, run_tokens, sliding_window)
        if has_tiles
        else None,
        num_tiles=count.sum(),
        page_size=page_size,
        item_tokens=item_tokens,
        items_per_turn=items_per_turn,
        run_tokens=run_tokens,
        tile_queries=TILE_QUERIES,
        sliding_window=sliding_window,
    )


def _queries(
    query_start: jax.Array, context_len: jax.Array, tokens: int, decode: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each token's row, its position, and whether it goes query by query; each [T]."""
    token = jnp.arange(tokens)
    if decode:
        return token, context_len - 1, context_len > 0
    row = jnp.searchsorted(query_start[1:], token, side="right", method="compare_all")
    real = row < context_len.shape[0]
    row = jnp.minimum(row, context_len.shape[0] - 1)
    position = context_len[row] - query_start[row + 1] + token
    return row, position, real & (jnp.diff(query_start)[row] <= SHORT_QUERIES) & (position >= 0)


def _items(
    page_table: jax.Array,
    row: jax.Array,
    high: jax.Array,
    page_size: int,
    item_tokens: int,
    items_per_turn: int,
    sliding_window: int | None,
) -> tuple[Items, jax.Array]:
    """The items of U short queries, and how many. row, high: i32[U]; high is 0 where unused, at the end."""
    U, per_item = row.shape[0], item_tokens // page_size
    low = _first_visible(high - 1, sliding_window)
    start = low // page_size * page_size
    count = -((start - high) // item_tokens)
    last = jnp.cumsum(count)
    most = U * -(-page_table.shape[1] // per_item)
    item = jnp.arange(-(-most // items_per_turn) * items_per_turn)
    entry = jnp.searchsorted(last, item, side="right")
    live = entry < U
    e = jnp.minimum(entry, U - 1)
    item_start = jnp.where(live, start[e] + (item - last[e] + count[e]) * item_tokens, 0)
    pages = item_start[:, None] // page_size + jnp.arange(per_item)
    return Items(
        entry=entry,
        pages=page_table[row[e][:, None], pages],
        start=item_start,
        low=low[e],
        high=jnp.where(live, high[e], 0),
    ), last[-1]


def _tile_counts(query_start: jax.Array) -> jax.Array:
    """Tiles of each row, i32[S]: none for the rows that go query by query."""
    queries = jnp.diff(query_start)
    return jnp.where(queries > SHORT_QUERIES, -(-queries // TILE_QUERIES), 0)


def _tiles(
    query_start: jax.Array,
    context_len: jax.Array,
    count: jax.Array,
    tokens: int,
    page_size: int,
    run_tokens: int,
    sliding_window: int | None,
) -> Tiles:
    """At most T/Q + S tiles; count: i32[S] tiles of each row."""
    S = context_len.shape[0]
    last = jnp.cumsum(count)
    tile = jnp.arange(-(-tokens // TILE_QUERIES) + S)
    row = jnp.minimum(jnp.searchsorted(last, tile, side="right", method="compare_all"), S - 1)
    token = query_start[row] + (tile - last[row] + count[row]) * TILE_QUERIES
    position = context_len[row] - query_start[row + 1] + token
    num_queries = jnp.minimum(query_start[row + 1] - token, TILE_QUERIES)
    low = _first_visible(position, sliding_window)
    start = low // page_size * page_size
    high = position + num_queries
    return Tiles(
        row=row,
        token=token,
        num_queries=num_queries,
        position=position,
        start=start,
        low=low,
        high=high,
        num_runs=-((start - high) // run_tokens),
    )


def _first_visible(position: jax.Array, sliding_window: int | None) -> jax.Array:
    return jnp.zeros_like(position) if sliding_window is None else jnp.maximum(position - sliding_window + 1, 0)
