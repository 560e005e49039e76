"""Attention in chunks: a token sees back to the last multiple of the chunk's size.

Every implementation of attention serves it as it is, since a row's tokens of one chunk are a row of their own, whose
context begins with the chunk's first page.
"""

import jax.numpy as jnp

from jserve.batch import AttentionRows
from jserve.runtime.shapes import Bucket


def chunk_rows(
    rows: AttentionRows, bucket: Bucket, windows: tuple[int | None, ...], page_size: int
) -> AttentionRows | None:
    """A row for each chunk that a row of a step can have tokens in; None where there are no chunks among the windows.

    Rows stay as many in a decode step. Chunks hold whole pages, unless no sequence is longer than one.
    """
    chunk = next((window for window in windows if window is not None), None)
    if chunk is None:
        return None
    num_rows, pages = rows.page_table.shape
    count = jnp.diff(rows.query_start)
    before = jnp.maximum(rows.context_len - count, 0)
    # So many tokens in a row lie in so many chunks at most, and a sequence has so many.
    most = 1 if bucket.is_decode else min((bucket.tokens - 2) // chunk + 2, -(-pages * page_size // chunk))
    number = (before // chunk)[:, None] + jnp.arange(most)
    begin = jnp.clip(number * chunk, before[:, None], rows.context_len[:, None])
    end = jnp.clip((number + 1) * chunk, before[:, None], rows.context_len[:, None])
    starts = rows.query_start[:-1, None] + begin - before[:, None]
    in_chunk = min(-(-chunk // page_size), pages)
    columns = number[:, :, None] * (chunk // page_size) + jnp.arange(in_chunk)
    table = jnp.take_along_axis(rows.page_table[:, None], jnp.minimum(columns, pages - 1), axis=2)
    return AttentionRows(
        page_table=table.reshape(num_rows * most, in_chunk),
        query_start=jnp.append(starts.reshape(-1), rows.query_start[-1]),
        context_len=jnp.where(end > begin, end - number * chunk, 0).reshape(-1),
    )
