"""Buckets: what must be there before serving holds every plan, and names tell programs apart."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jserve.runtime.shapes import Bucket, EngineShape


@st.composite
def shapes(draw: st.DrawFn) -> EngineShape:
    seqs = draw(st.integers(1, 300))
    tokens = draw(st.integers(seqs, 5000))
    page_size = draw(st.sampled_from([1, 4, 64]))
    length = draw(st.integers(1, 10_000))
    return EngineShape(seqs, tokens, length, page_size, 100, 128, min_rows=draw(st.sampled_from([1, 2])))


def holds(bucket: Bucket, tokens: int, rows: int) -> bool:
    """What the step can compute: a decode bucket has one token for each row."""
    return rows <= bucket.rows and tokens <= bucket.tokens and (tokens == rows or not bucket.is_decode)


@given(shapes(), st.data())
@example(EngineShape(1, 1, 1, 1, 2, 3), None)
@example(EngineShape(1, 1, 1, 1, 2, 3, min_rows=2), None)
@example(EngineShape(64, 64, 100, 16, 2, 3), None)
def test_the_three_required_buckets_hold_every_plan(shape: EngineShape, data: st.DataObject | None) -> None:
    rows = data.draw(st.integers(1, shape.max_num_seqs)) if data else shape.max_num_seqs
    tokens = data.draw(st.integers(rows, shape.max_num_batched_tokens)) if data else shape.max_num_batched_tokens
    required = shape.buckets()[:3]
    assert any(holds(bucket, tokens, rows) for bucket in required)
    assert any(holds(bucket, rows, rows) for bucket in required)


@given(shapes())
def test_buckets_and_their_names_are_all_different(shape: EngineShape) -> None:
    buckets = shape.buckets()
    assert len(set(buckets)) == len({str(bucket) for bucket in buckets}) == len(buckets)
    assert all(bucket.rows >= shape.min_rows for bucket in buckets)


@given(shapes())
def test_a_decode_step_is_padded_to_at_most_twice_its_rows(shape: EngineShape) -> None:
    decodes = [bucket.rows for bucket in shape.buckets() if bucket.is_decode]
    for rows in range(1, shape.max_num_seqs + 1):
        assert min(size for size in decodes if size >= rows) <= max(2 * rows, shape.min_rows)


@given(shapes())
def test_a_mixed_step_is_padded_to_at_most_twice_its_tokens_where_its_rows_allow(shape: EngineShape) -> None:
    mixed = [bucket for bucket in shape.buckets() if not bucket.is_decode]
    for rows in {1, min(5, shape.max_num_seqs), shape.max_num_seqs}:
        for tokens in range(2 * rows + 1, shape.max_num_batched_tokens + 1, 7):
            chosen = min(bucket for bucket in mixed if bucket.tokens >= tokens and bucket.rows >= rows)
            assert chosen.tokens < max(2 * tokens, 8 * rows + 1, 17), f"{tokens} tokens of {rows} rows run in {chosen}"


@given(shapes())
def test_there_are_few_buckets(shape: EngineShape) -> None:
    """Each is a program to compile: powers of two of rows, and of two of tokens with four, sixteen ... rows."""
    assert len(shape.buckets()) <= 10 + 10 + 3 * 5


@pytest.mark.parametrize(("seqs", "tokens", "count"), [(64, 256, 16), (256, 4096, 26)])
def test_the_default_sizes_have_so_many_programs(seqs: int, tokens: int, count: int) -> None:
    assert len(EngineShape(seqs, tokens, 2048, 32, 100, 128, min_rows=2).buckets()) == count


@given(st.integers(1, 5000), st.integers(1, 128))
def test_a_sequence_has_just_the_pages_for_its_longest_length(length: int, page_size: int) -> None:
    pages = EngineShape(1, 1, length, page_size, 1, 1).pages_per_sequence
    assert (pages - 1) * page_size < length <= pages * page_size
