"""The definition of paged attention: plain jnp, one query at a time, float32 throughout.

Never fast. Every implementation is compared with this one.
"""

import jax
import jax.numpy as jnp

__all__ = ["reference"]


def reference(
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
    """softmax(soft_cap(scale * q k^T) + mask) v over the pages of each row; shapes as in `paged_attention`.

    q: [T, H, D]; k_pages, v_pages: [N, K, B, D]; page_table: i32[S, P]; query_start: i32[S+1];
    context_len: i32[S]; sinks: [H]; k_scale, v_scale: f32[N, K, B, 1]; returns [T, H, D] in q's dtype. A query
    with nothing to attend to gets zeros.
    """
    del decode  # a promise about the shapes that changes no value
    T, H, D = q.shape
    K, B = k_pages.shape[1:3]
    S, P = page_table.shape
    token = jnp.arange(T)
    row = jnp.searchsorted(query_start[1:], token, side="right")  # S for padding tokens
    real = row < S
    row = jnp.minimum(row, S - 1)
    position = context_len[row] - query_start[row + 1] + token

    def attend(one: tuple[jax.Array, ...]) -> jax.Array:
        query, row, position, real = one
        key_position = jnp.arange(P * B)
        live = real & (key_position <= position)
        if sliding_window is not None:
            live &= key_position > position - sliding_window
        # A dead position may name any page and hold NaN: select it away before multiplying.
        pages = jnp.where(live.reshape(P, B).any(1), page_table[row], 0)
        k = jnp.where(live[:, None, None], _tokens(k_pages, k_scale, pages), 0)
        v = jnp.where(live[:, None, None], _tokens(v_pages, v_scale, pages), 0)
        scores = jnp.einsum("kgd,ckd->kgc", query.reshape(K, H // K, D), k, precision="highest") * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        largest = scores.max(-1, keepdims=True, where=live, initial=-1e30)
        weights = jnp.where(live, jnp.exp(scores - largest), 0)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        if sinks is not None:
            total += jnp.exp(sinks.astype(jnp.float32).reshape(K, H // K, 1) - largest)
        return jnp.einsum("kgc,ckd->kgd", weights / total, v, precision="highest").reshape(H, D)

    out: jax.Array = jax.lax.map(attend, (q.astype(jnp.float32), row, position, real))
    return out.astype(q.dtype)


def _tokens(pages: jax.Array, scale: jax.Array | None, page_ids: jax.Array) -> jax.Array:
    """[N, K, B, D] and i32[P] -> f32[P*B, K, D], in the order of the tokens."""
    K, D = pages.shape[1], pages.shape[3]
    rows = pages[page_ids]
    if rows.dtype == jnp.uint16:
        rows = jax.lax.bitcast_convert_type(rows, jnp.bfloat16)
    if rows.dtype == jnp.uint8:
        rows = jax.lax.bitcast_convert_type(rows, jnp.float8_e4m3fn)
    wide = rows.astype(jnp.float32) * (1 if scale is None else scale[page_ids])
    return wide.swapaxes(1, 2).reshape(-1, K, D)
