"""Attention in chunks: rows of chunks see what a mask of chunks lets through."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jserve.batch import AttentionRows
from jserve.errors import ConfigError
from jserve.runtime.chunks import chunk_rows
from jserve.runtime.shapes import Bucket
from pallas_kernels.paged_attention import paged_attention
from tests.worlds import make_model, start_engine

PAGE, PAGES, HEADS, DIM = 4, 16, 2, 8
"""Tokens of a page, and pages of a sequence."""


def expected(q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, chunk: int) -> np.ndarray:
    """Attention of one token, [heads, D]. keys, values: [tokens, heads, D]."""
    seen = slice(position // chunk * chunk, position + 1)
    scores = np.einsum("hd,thd->ht", q, keys[seen])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return np.einsum("ht,thd->hd", shares / shares.sum(1, keepdims=True), values[seen])


@pytest.mark.parametrize("chunk", [4, 8, 64, 128])
@pytest.mark.parametrize(
    ("bucket", "rows"),
    [
        (Bucket(4, 4), [(1, 1), (1, 8), (1, 9), (0, 0)]),
        (Bucket(32, 4), [(1, 33), (13, 29), (8, 16), (0, 0)]),
        (Bucket(32, 2), [(32, 64), (0, 0)]),
        (Bucket(16, 2), [(1, 5), (9, 9)]),
    ],
    ids=str,
)
def test_rows_of_chunks_see_what_a_mask_of_chunks_lets_through(
    bucket: Bucket, rows: list[tuple[int, int]], chunk: int
) -> None:
    rng = np.random.default_rng(chunk + bucket.tokens)
    normal = rng.standard_normal
    keys, values = (normal((len(rows), PAGES * PAGE, HEADS, DIM)).astype(np.float32) for _ in range(2))
    table = rng.permutation(len(rows) * PAGES).reshape(len(rows), PAGES).astype(np.int32)
    pools = []
    for of_rows in (keys, values):
        pool = np.full((len(rows) * PAGES, HEADS, PAGE, DIM), np.nan, np.float32)
        for row, (_, context) in enumerate(rows):
            paged = of_rows[row].reshape(PAGES, PAGE, HEADS, DIM).swapaxes(1, 2)
            live = -(-context // PAGE)
            pool[table[row, :live]] = paged[:live]
        pools.append(jnp.asarray(pool))
    q = normal((bucket.tokens, HEADS, DIM)).astype(np.float32)
    starts = np.cumsum([0, *(count for count, _ in rows)]).astype(np.int32)
    if bucket.is_decode:
        starts = np.arange(bucket.rows + 1, dtype=np.int32)
    contexts = np.array([context for _, context in rows], np.int32)
    whole = AttentionRows(jnp.asarray(table), jnp.asarray(starts), jnp.asarray(contexts))
    seen = chunk_rows(whole, bucket, (None, chunk), PAGE)
    assert seen is not None
    actual = np.asarray(
        paged_attention(
            jnp.asarray(q),
            *pools,
            seen.page_table,
            seen.query_start,
            seen.context_len,
            scale=1.0,
            decode=bucket.is_decode,
            implementation="xla",
        )
    )
    for row, (count, context) in enumerate(rows):
        for token in range(count):
            position = context - count + token
            right = expected(q[starts[row] + token], keys[row], values[row], position, chunk)
            np.testing.assert_allclose(actual[starts[row] + token], right, atol=1e-5, err_msg=f"{row} {position}")


@pytest.mark.parametrize("chunk", [3, 10, 13])
@pytest.mark.parametrize(("bucket", "count"), [(Bucket(2, 2), 1), (Bucket(16, 2), 2)], ids=str)
def test_a_chunk_that_no_sequence_is_longer_than_may_end_within_a_page(bucket: Bucket, count: int, chunk: int) -> None:
    """The last token of the longest sequence sees all of its pages."""
    pages = -(-chunk // PAGE)
    table = jnp.arange(2 * pages, dtype=jnp.int32).reshape(2, pages)
    rows = AttentionRows(table, jnp.array([0, count, count], jnp.int32), jnp.array([chunk, 0], jnp.int32))
    seen = chunk_rows(rows, bucket, (chunk,), PAGE)
    assert seen is not None
    lengths = np.asarray(seen.context_len)
    assert sorted(lengths)[-2:] == [0, chunk]
    np.testing.assert_array_equal(seen.page_table[int(lengths.argmax())], table[0])


def test_no_window_has_no_rows_of_chunks() -> None:
    rows = AttentionRows(jnp.zeros((2, 4), jnp.int32), jnp.zeros(3, jnp.int32), jnp.zeros(2, jnp.int32))
    assert chunk_rows(rows, Bucket(8, 2), (None,), PAGE) is None


def test_a_page_that_does_not_divide_a_chunk_is_refused_by_name(tmp_path: Path, executables: str) -> None:
    folder = make_model(tmp_path, "Llama4ForCausalLM", attention_chunk_size=24, head_dim=8, num_local_experts=2)
    with pytest.raises(ConfigError, match="--page-size is 16 but this model attends in chunks of 24 tokens"):
        start_engine(folder, executables, early=True, page_size=16)
