"""Latent attention in plain jax.numpy, for CPUs and as the fallback: paged attention with one KV head.

A value is the first part of its key, so each page is loaded once. Only live pages are read.
"""

import jax

from ..paged_attention.xla import AttentionPlan, attend, make_plan

__all__ = ["attend_latents", "latent_attention_xla"]


def latent_attention_xla(
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
    """Shapes as in `latent_attention`. Returns [T, H, rank] in q's dtype."""
    plan = make_plan(
        page_table,
        query_start,
        context_len,
        tokens=q.shape[0],
        pages=pages.shape[0],
        page_size=pages.shape[2],
        decode=decode,
    )
    return attend_latents(q, pages, plan, rank=rank, scale=scale)


def attend_latents(q: jax.Array, pages: jax.Array, plan: AttentionPlan, *, rank: int, scale: float) -> jax.Array:
    """Likewise, following a plan that all layers of a step share."""
    return attend(q, pages, rank, plan, scale=scale)
