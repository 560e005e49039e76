"""The definition of latent attention: plain jnp, one query at a time, float32 throughout.

Never fast. Every implementation is compared with this one.
"""

import jax
import jax.numpy as jnp

__all__ = ["reference"]


def reference(
    q: jax.Array,
    pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    rank: int,
    scale: float,
    decode: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T + mask) k[:, :rank] over the pages of each row; shapes as in `latent_attention`.

    q: [T, H, D]; pages: [N, 1, B, D]; page_table: i32[S, P]; query_start: i32[S+1]; context_len: i32[S];
    returns [T, H, rank] in q's dtype. A query with nothing to attend to gets zeros.
    """
    del decode  # a promise about the shapes that changes no value
    B, (S, P) = pages.shape[2], page_table.shape
    token = jnp.arange(q.shape[0])
    row = jnp.searchsorted(query_start[1:], token, side="right")  # S for padding tokens
    real = row < S
    row = jnp.minimum(row, S - 1)
    position = context_len[row] - query_start[row + 1] + token

    def attend(one: tuple[jax.Array, ...]) -> jax.Array:
        query, row, position, real = one
        live = real & (jnp.arange(P * B) <= position)
        # A dead position may name any page and hold NaN: select it away before multiplying.
        ids = jnp.where(live.reshape(P, B).any(1), page_table[row], 0)
        keys = jnp.where(live[:, None], _tokens(pages, ids), 0)
        scores = jnp.einsum("hd,cd->hc", query, keys, precision="highest") * scale
        largest = scores.max(-1, keepdims=True, where=live, initial=-1e30)
        weights = jnp.where(live, jnp.exp(scores - largest), 0)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("hc,cr->hr", weights / total, keys[:, :rank], precision="highest")

    out: jax.Array = jax.lax.map(attend, (q.astype(jnp.float32), row, position, real))
    return out.astype(q.dtype)


def _tokens(pages: jax.Array, page_ids: jax.Array) -> jax.Array:
    """[N, 1, B, D] and i32[P] -> f32[P*B, D], in the order of the tokens."""
    rows = pages[page_ids]
    if rows.dtype == jnp.uint16:
        rows = jax.lax.bitcast_convert_type(rows, jnp.bfloat16)
    return rows.astype(jnp.float32).reshape(-1, pages.shape[3])
