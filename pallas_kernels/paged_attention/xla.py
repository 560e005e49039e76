"""Paged attention in plain jax.numpy: the fast path on a CPU, and the fallback everywhere else.

Work is a list of (query, run of pages) items that holds live pages only, walked by loops whose trip count is
read on the device: a batch of short contexts costs little however long the longest allowed context is. Rows
with a few queries go token by token (`_attend_tokens`), longer chunks in query tiles (`_attend_tiles`).
"""

import jax
import jax.numpy as jnp
from jax import lax

from .eight_bits import round_kv, widen
from .xla_plan import AttentionPlan, make_plan

__all__ = ["AttentionPlan", "attend", "make_plan", "paged_attention_xla", "write_kv", "write_pages"]

# The score of a masked position: finite, so that exp(masked - masked) is 1 and not NaN. What such a position
# adds is dropped again by exp(MASKED - real) == 0 as soon as its query meets a key that it may see.
MASKED = -1e30

Pages = tuple[jax.Array, jax.Array | None]  # of keys or values, and their scales


def paged_attention_xla(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    decode: bool = False,
) -> jax.Array:
    """`make_plan` and `attend` in one; shapes as in `paged_attention`. Returns [T, H, D] in q's dtype."""
    plan = make_plan(
        page_table,
        query_start,
        context_len,
        tokens=q.shape[0],
        pages=k_pages.shape[0],
        page_size=k_pages.shape[2],
        sliding_window=sliding_window,
        decode=decode,
    )
    return attend(q, k_pages, v_pages, plan, sinks, k_scale, v_scale, scale=scale, soft_cap=soft_cap)


def attend(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array | int,
    plan: AttentionPlan,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attend each query to its row's pages, following a plan that all layers of a step share.

    q: [T, H, D]; k_pages, v_pages: [N, K, B, D], with the T, N and B that the plan was made for; sinks: [H];
    k_scale, v_scale: f32[N, K, B, 1] where pages have 8 bits. In place of v_pages a number: so many first
    elements of each key are its value. Returns [T, H, D], or of the values' width, in q's dtype; zeros for
    padding. Softmax and sums are float32.
    """
    T, H, D = q.shape
    K = k_pages.shape[1]
    grouped = (q.astype(jnp.float32) * scale).reshape(T, K, H // K, D)
    heads = None if sinks is None else sinks.astype(jnp.float32).reshape(K, H // K)
    keys, values = (k_pages, k_scale), v_pages if isinstance(v_pages, int) else (v_pages, v_scale)
    out = _attend_tokens(grouped, keys, values, plan, heads, soft_cap)
    if plan.tiles is not None:
        tiled = _attend_tiles(grouped, keys, values, plan, heads, soft_cap)
        out = jnp.where(plan.is_short[:, None, None, None], out, tiled)
    return out.reshape(T, H, out.shape[-1]).astype(q.dtype)


def _attend_tokens(
    q: jax.Array,
    keys: Pages,
    values: Pages | int,
    plan: AttentionPlan,
    sinks: jax.Array | None,
    soft_cap: float | None,
) -> jax.Array:
    """Single queries: each turn of the loop takes the next W items, of whichever queries they are.

    q: f32[T, K, G, D], scaled. Returns f32[T, K, G, values' width], zeros for tokens that are not short.
    """
    K, G = q.shape[1:3]
    W, C = plan.items_per_turn, plan.item_tokens
    queries = q[plan.entry_token]

    def turn(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        item = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * W, W), plan.items)
        position = item.start[:, None] + jnp.arange(C)
        live = (position >= item.low[:, None]) & (position < item.high[:, None])
        k, v = _read_both(keys, values, item.pages, live[:, None, :, None])
        query = queries.at[item.entry].get(mode="clip")
        scores = _cap(_dot(query, k, (3, 3)), soft_cap)
        return _merge(state, item.entry, jnp.where(live[:, None, None], scores, MASKED), v)

    shape = (plan.entry_token.shape[0] + W, K, G)
    state = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, _width(values))))
    acc = _divide(lax.fori_loop(0, plan.num_turns, turn, state), sinks)
    return jnp.where(plan.is_short[:, None, None, None], acc[plan.token_entry], 0)


def _merge(state: tuple[jax.Array, ...], entry: jax.Array, scores: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    """Add W items to the running softmax (largest score, sum of weights, weighted values) of their queries.

    Items come in the order of their queries and no query is without one, so W items touch at most W
    consecutive entries of the state and the update is a slice. state: f32[U+W, K, G] twice and
    f32[U+W, K, G, D]; entry: i32[W]; scores: f32[W, K, G, C]; v: [W, K, C, D].
    """
    W, first = entry.shape[0], entry[0]
    mine = entry == first + jnp.arange(W)[:, None]  # [entry of the slice, item]
    best, total, acc = (lax.dynamic_slice_in_dim(a, first, W) for a in state)
    peaks = jnp.where(mine[:, :, None, None], scores.max(-1), MASKED)
    new_best = jnp.maximum(best, peaks.max(1))
    item_best = jnp.where(mine[:, :, None, None], new_best[:, None], MASKED).max(0)
    weights = jnp.exp(scores - item_best[..., None])
    keep = jnp.exp(best - new_best)
    total = total * keep + _sum_items(mine, weights.sum(-1))
    acc = acc * keep[..., None] + _sum_items(mine, _dot(weights, v, (3, 2)))
    new = (new_best, total, acc)
    return tuple(lax.dynamic_update_slice_in_dim(a, b, first, 0) for a, b in zip(state, new, strict=True))


def _sum_items(mine: jax.Array, parts: jax.Array) -> jax.Array:
    """f32[W, ...]: for each entry of the slice the sum of its items' parts; mine: bool[W, W]; parts: f32[W, ...].

    An item is selected, and not multiplied by one or zero: NaN of one query would reach all the others.
    """
    chosen = mine.reshape(*mine.shape, *[1] * (parts.ndim - 1))
    total = jnp.zeros_like(parts)
    for item in range(parts.shape[0]):
        total += jnp.where(chosen[:, item], parts[item], 0)
    return total


def _attend_tiles(
    q: jax.Array,
    keys: Pages,
    values: Pages | int,
    plan: AttentionPlan,
    sinks: jax.Array | None,
    soft_cap: float | None,
) -> jax.Array:
    """Chunks of queries: for each tile of Q queries of one row, a loop over the runs of pages that it sees.

    q: f32[T, K, G, D], scaled. Returns f32[T, K, G, values' width], zeros for tokens outside the tiles.
    """
    T, K, G, D = q.shape
    Q, C, width = plan.tile_queries, plan.run_tokens, _width(values)
    padded = jnp.pad(q, ((0, Q), (0, 0), (0, 0), (0, 0)))

    def tile(i: jax.Array, out: jax.Array) -> jax.Array:
        t = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), plan.tiles)
        queries = lax.dynamic_slice_in_dim(padded, t.token, Q).transpose(1, 2, 0, 3).reshape(1, K, G * Q, D)
        q_position = t.position + jnp.arange(Q)[:, None]

        def run(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            best, total, acc = state
            start = t.start + j * C
            k_position = start + jnp.arange(C)
            ids = lax.dynamic_slice(plan.page_table, (t.row, start // plan.page_size), (1, C // plan.page_size))
            live = (k_position >= t.low) & (k_position < t.high)
            k, v = _read_both(keys, values, ids, live[:, None])
            seen = live & (k_position <= q_position)
            if plan.sliding_window is not None:
                seen &= k_position > q_position - plan.sliding_window
            scores = _cap(_dot(queries, k, (3, 3)), soft_cap).reshape(K, G, Q, C)
            scores = jnp.where(seen, scores, MASKED).reshape(1, K, G * Q, C)
            new_best = jnp.maximum(best, scores.max(-1))
            weights = jnp.exp(scores - new_best[..., None])
            keep = jnp.exp(best - new_best)
            added = _dot(weights, v, (3, 2))
            return new_best, total * keep + weights.sum(-1), acc * keep[..., None] + added

        shape = (1, K, G * Q)
        state = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, width)))
        each = None if sinks is None else jnp.repeat(sinks, Q, axis=1)
        divided = _divide(lax.fori_loop(0, t.num_runs, run, state), each)
        result = divided.reshape(K, G, Q, width).transpose(2, 0, 1, 3)
        mine = jnp.arange(Q) < t.num_queries  # the rest of the tile belongs to the next row
        old = lax.dynamic_slice_in_dim(out, t.token, Q)
        return lax.dynamic_update_slice_in_dim(out, jnp.where(mine[:, None, None, None], result, old), t.token, 0)

    tiled: jax.Array = lax.fori_loop(0, plan.num_tiles, tile, jnp.zeros((T + Q, K, G, width)))
    return tiled[:T]


def _divide(state: tuple[jax.Array, ...], sinks: jax.Array | None) -> jax.Array:
    """The values that a running softmax has weighed, f32[..., K, G, D]; sinks: f32[K, G] as in `paged_attention`."""
    best, total, acc = state
    if sinks is not None:
        total = total + jnp.exp(sinks - best)  # infinite where nothing was seen: zeros result
    return acc / jnp.maximum(total, 1e-30)[..., None]


def _load(pages: jax.Array, ids: jax.Array) -> jax.Array:
    """[N, K, B, D] and i32[W, C/B] -> [W, K, C, D]. The ids are in range: the plan clamped them."""
    K, D = pages.shape[1], pages.shape[3]
    return pages.at[ids].get(mode="promise_in_bounds").swapaxes(1, 2).reshape(ids.shape[0], K, -1, D)


def _read_both(keys: Pages, values: Pages | int, ids: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values; where values are the first elements of keys, pages are read once."""
    k = _read(keys, ids)
    return k, jnp.where(live, k[..., :values], 0) if isinstance(values, int) else _read(values, ids, live)


def _width(values: Pages | int) -> int:
    return values if isinstance(values, int) else values[0].shape[-1]


def _read(pages: Pages, ids: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """What pages hold, [W, K, C, D]: themselves, bfloat16 where they are its bits, float32 of 8 bits and a scale.

    Zeros where not `live`, selected and not multiplied away: a dead position may hold NaN, and 0 * NaN is NaN.
    """

    def load(array: jax.Array) -> jax.Array:
        values = _load(array, ids)
        return values if live is None else jnp.where(live, values, 0)

    held, scale = load(pages[0]), pages[1]
    if scale is not None:
        return widen(held) * load(scale)
    return lax.bitcast_convert_type(held, jnp.bfloat16) if held.dtype == jnp.uint16 else held


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Batched over the first two axes, float32 out: a 16-bit result is ten times slower on a CPU."""
    dimensions = (((contract[0],), (contract[1],)), ((0, 1), (0, 1)))
    precision = "highest" if b.dtype == jnp.float32 else None  # no TF32 where this runs on a GPU; free on a CPU
    return lax.dot_general(a.astype(b.dtype), b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _cap(scores: jax.Array, soft_cap: float | None) -> jax.Array:
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def write_kv(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    write_slots: jax.Array,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Write T tokens into the pages, in place where the caller donates them. Returns the pages, then the scales
    where there are any.

    k_pages, v_pages: [N, K, B, D]; k, v: [T, K, D]; write_slots: i32[T] = page * B + offset; slots outside
    0 .. N*B-1 are dropped. Pages of uint16 take the bits of bfloat16: XLA:CPU would widen a whole pool of
    bfloat16 to write a token. Those of 8 bits have scales, f32[N, K, B, 1]: see `eight_bits`.
    """

    def write(pages: jax.Array, new: jax.Array) -> jax.Array:
        return write_pages(pages, new, write_slots)

    if k_scale is None or v_scale is None:
        return write(k_pages, k), write(v_pages, v)
    (k, k_size), (v, v_size) = round_kv(k, k_pages.dtype), round_kv(v, v_pages.dtype)
    return write(k_pages, k), write(v_pages, v), write(k_scale, k_size), write(v_scale, v_size)


def write_pages(pages: jax.Array, new: jax.Array, write_slots: jax.Array) -> jax.Array:
    """`write_kv` of one array as it is: pages [N, K, B, D], new [T, K, D].

    No two tokens have the same slot, and XLA is told so: on a GPU it would otherwise write each element by
    compare-and-swap. So padding tokens, which are dropped, get slots of their own past the end.
    """
    N, _, B, _ = pages.shape
    past_the_end = N * B + lax.iota(jnp.int32, write_slots.shape[0])
    page, offset = jnp.divmod(jnp.where((write_slots >= 0) & (write_slots < N * B), write_slots, past_the_end), B)
    if pages.dtype == jnp.uint16:
        new = lax.bitcast_convert_type(new.astype(jnp.bfloat16), jnp.uint16)
    return pages.at[page, :, offset].set(
        new.astype(pages.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False
    )
