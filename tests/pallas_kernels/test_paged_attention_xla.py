"""Paged attention on the XLA path: any ragged batch agrees with the definition, and writes stay in place."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paged_attention.cases import Case, Row
from pallas_kernels.paged_attention.eight_bits import LARGEST, widen
from pallas_kernels.paged_attention.reference import reference
from pallas_kernels.paged_attention.xla import attend, make_plan, paged_attention_xla, write_kv
from pallas_kernels.paged_attention.xla_plan import TILE_QUERIES

# float32 on both sides, which differ by the order of the sums alone; values are of order 1.
TOLERANCE = 1e-5


def assert_matches(case: Case, seed: int = 0) -> None:
    """`case.make` poisons with NaN what nobody may read, and fills dead table entries with garbage."""
    inputs = case.make(seed)
    got = jax.jit(functools.partial(paged_attention_xla, **inputs.static))(*inputs.args)
    defined = jax.jit(functools.partial(reference, **inputs.static)).lower(*inputs.args)
    expected = defined.compile({"xla_backend_optimization_level": 0})(*inputs.args)  # it runs once, for milliseconds
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    query_len = draw(st.sampled_from([1, 1, 1, 2, 4, 5, 9, 70]))
    return Row(query_len, query_len + draw(st.sampled_from([0, 1, 15, 16, 63, 64, 65, 130, 300])))


@settings(max_examples=6)
@given(
    st.lists(rows(), min_size=1, max_size=11).map(tuple),
    st.sampled_from([(9, 3, 8), (4, 4, 8), (7, 1, 16), (4, 2, 4)]),
    st.sampled_from([4, 16, 128]),
    st.sampled_from([None, 1, 7, 100]),
    st.sampled_from([None, 3.0]),
    st.integers(0, 3),
    st.integers(0, 5),
    st.integers(0, 2**20),
)
def test_any_ragged_batch_agrees_with_the_reference(batch, heads, page_size, window, cap, padding, spare, seed):
    H, K, D = heads
    assert_matches(
        Case("random", H, K, D, page_size, batch, "float32", window, cap, padding, padding_tokens=spare), seed
    )


@pytest.mark.parametrize("window", [None, 9, 64])
def test_decode_of_more_rows_than_a_turn_takes(window):
    contexts = [1, 64, 65, 16, 300, 17, 2, 128, 129, 5, 200, 63, 1]
    batch = tuple(Row(1, context) for context in contexts)
    assert_matches(Case("decode", 6, 3, 8, 16, batch, "float32", window, padding_rows=3))


@pytest.mark.parametrize("query_len", [TILE_QUERIES, TILE_QUERIES + 1])
def test_tiles_end_where_the_next_row_begins(query_len):
    batch = (Row(query_len, query_len + 290), Row(1, 40), Row(query_len, query_len), Row(3, 300))
    assert_matches(Case("tiles", 4, 2, 8, 16, batch, "float32", padding_tokens=3))


def test_padding_rows_between_live_rows_of_a_decode_batch_give_zeros():
    inputs = Case("decode", 4, 2, 8, 4, (Row(1, 9), Row(1, 30), Row(1, 7)), "float32").make(1)
    q, k_pages, v_pages, table, _, contexts = inputs.args
    gaps = contexts.at[1].set(0)
    out = paged_attention_xla(q, k_pages, v_pages, table, jnp.arange(4), gaps, scale=1.0, decode=True)
    full = paged_attention_xla(q, k_pages, v_pages, table, jnp.arange(4), contexts, scale=1.0, decode=True)
    assert not np.asarray(out[1]).any()
    np.testing.assert_array_equal(out[0], full[0])
    np.testing.assert_allclose(out[2], full[2], atol=TOLERANCE)


def test_a_batch_without_a_live_row_gives_zeros():
    q = jnp.ones((8, 2, 4))
    pages = jnp.full((3, 1, 2, 4), jnp.nan)
    for decode in (True, False):
        table, starts, contexts = jnp.full((8, 5), -7), jnp.zeros(9, jnp.int32), jnp.zeros(8, jnp.int32)
        out = paged_attention_xla(q, pages, pages, table, starts, contexts, scale=1.0, decode=decode)
        np.testing.assert_array_equal(out, np.zeros((8, 2, 4)))


def test_one_plan_serves_every_layer():
    inputs = Case("mixed", 4, 2, 8, 4, (Row(1, 9), Row(6, 30)), "float32", padding_tokens=1).make(2)
    q, k_pages, v_pages, *rows_of_step = inputs.args
    plan = make_plan(*rows_of_step, tokens=q.shape[0], pages=k_pages.shape[0], page_size=4)
    for layer in range(2):
        got = attend(q, k_pages + layer, v_pages * (layer + 1), plan, scale=0.5)
        expected = reference(q, k_pages + layer, v_pages * (layer + 1), *rows_of_step, scale=0.5)
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_work_follows_the_live_context_and_not_the_longest_possible():
    plan = jax.jit(functools.partial(make_plan, tokens=4, pages=9, page_size=16, decode=True))
    short = plan(jnp.zeros((4, 1000), jnp.int32), jnp.arange(5), jnp.array([128, 1, 0, 129]))
    assert short.num_turns == 1  # 1 + 1 + 0 + 2 runs of 128 keys, of the 8 that a turn takes here
    long = plan(jnp.zeros((4, 1000), jnp.int32), jnp.arange(5), jnp.array([128, 1, 0, 16000]))
    assert long.num_turns == -(-127 // long.items_per_turn)


@pytest.mark.parametrize("rows", [(Row(1, 9), Row(1, 300)), (Row(1, 9), Row(70, 130), Row(3, 40))])
def test_pages_of_the_bits_of_bfloat16_hold_what_they_stand_for(rows):
    inputs = Case("bits", 6, 3, 8, 16, rows, "float32", padding_rows=1, padding_tokens=0).make(3)
    q, k_pages, v_pages, *rest = inputs.args
    narrow = [pages.astype(jnp.bfloat16) for pages in (k_pages, v_pages)]
    bits = [jax.lax.bitcast_convert_type(pages, jnp.uint16) for pages in narrow]
    q = q.astype(jnp.bfloat16).astype(jnp.float32)
    got = paged_attention_xla(q, *bits, *rest, **inputs.static)
    expected = reference(q, *(pages.astype(jnp.float32) for pages in narrow), *rest, **inputs.static)
    # Scaled queries and weights of the softmax are rounded to bfloat16, whose half unit is 2**-9.
    np.testing.assert_allclose(got, expected, atol=3 * 2**-9)
    np.testing.assert_array_equal(reference(q, *bits, *rest, **inputs.static), expected)


def test_write_kv_rounds_to_the_bits_of_bfloat16():
    pages = jnp.zeros((2, 1, 2, 3), jnp.uint16)
    new = jnp.array([[[1.0, -2.5, 1.0 + 2**-9]]])
    written = jax.lax.bitcast_convert_type(write_kv(pages, pages, new, new, jnp.array([3]))[0], jnp.bfloat16)
    np.testing.assert_array_equal(written[1, 0, 1].astype(jnp.float32), [1.0, -2.5, 1.0])
    assert not written.at[1, 0, 1].set(0).any()


@pytest.mark.parametrize(("dtype", "step"), [("int8", 0.5), ("uint8", 16)])
def test_write_kv_rounds_each_token_of_a_head_by_its_own_size(dtype, step):
    """step: what a code of the largest size may be off by; codes reach 127, and 448 with 3 bits after the first."""
    N, K, B, D = 3, 2, 4, 16
    rng = np.random.default_rng(0)
    new = (rng.standard_normal((5, K, D)) * 10.0 ** rng.integers(-20, 5, (5, K, 1))).astype(np.float32)
    new[4] = 0
    pages, scale = jnp.zeros((N, K, B, D), dtype), jnp.zeros((N, K, B, 1))
    k, v, k_scale, v_scale = write_kv(pages, pages, new, -new, jnp.array([0, 5, 11, 6, 7]), scale, scale)
    held = np.asarray(widen(k) * k_scale)[[0, 1, 2, 1, 1], :, [0, 1, 3, 2, 3]]
    largest = np.abs(new).max(-1, keepdims=True)
    assert (np.abs(held - new) <= largest * step / LARGEST[jnp.dtype(dtype)] * 1.0001).all()
    np.testing.assert_allclose(np.abs(held).max(-1, keepdims=True), largest, rtol=1e-6)
    np.testing.assert_array_equal(widen(v) * v_scale, -widen(k) * k_scale)
    alone = write_kv(pages, pages, new[1:2], -new[1:2], jnp.array([5]), scale, scale)
    for array, one in zip((k, k_scale), (alone[0], alone[2]), strict=True):
        np.testing.assert_array_equal(array[1, :, 1], one[1, :, 1])


def test_every_code_of_float8_is_widened_exactly():
    codes = np.arange(256, dtype=np.uint8)
    finite = codes[(codes & 0x7F) != 0x7F]
    np.testing.assert_array_equal(widen(jnp.asarray(finite)), finite.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    np.testing.assert_array_equal(widen(jnp.arange(-128, 128).astype(jnp.int8)), np.arange(-128.0, 128))


def test_write_kv_places_tokens_and_drops_padding():
    N, K, B, D = 3, 2, 4, 5
    k = jnp.arange(4 * K * D, dtype=jnp.float32).reshape(4, K, D) + 1
    pages = jnp.zeros((N, K, B, D))
    k_pages, v_pages = write_kv(pages, pages, k, -k, jnp.array([5, 11, N * B, N * B + 99]))
    expected = np.zeros((N, K, B, D), np.float32)
    expected[1, :, 1], expected[2, :, 3] = k[0], k[1]
    np.testing.assert_array_equal(k_pages, expected)
    np.testing.assert_array_equal(v_pages, -expected)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int8"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_a_step_that_donates_its_pages_copies_none(tokens, dtype):
    N, K, B, D = 3200 // jnp.dtype(dtype).itemsize, 2, 16, 8
    pages, new, ints = jnp.zeros((N, K, B, D), dtype), jnp.zeros((tokens, K, D)), jnp.zeros((tokens, 4), jnp.int32)
    scales = [jnp.zeros((N, K, B, 1)) + i for i in range(2)] if jnp.dtype(dtype) in LARGEST else []

    def step(layers, k, slots, table, starts, contexts):
        plan = make_plan(table, starts, contexts, tokens=tokens, pages=N, page_size=B, decode=True)
        written = [write_kv(*layer[:2], k, k, slots, *layer[2:]) for layer in layers]
        return written, [attend(k, *layer[:2], plan, None, *layer[2:], scale=1.0) for layer in written]

    args = (
        [(pages, pages + 1, *scales), (pages, pages + 2, *scales)],
        new,
        ints[:, 0],
        ints,
        jnp.arange(tokens + 1),
        ints[:, 0],
    )
    compiled = jax.jit(step, donate_argnums=0).lower(*args).compile()
    pool = rf"(?:f32|u16|s8)\[(?:{N},{K},{B}|{N * K * B}),(?:{D}|1)\]"
    assert not re.findall(rf"= {pool}\S* copy\(", compiled.as_text())
    assert compiled.memory_analysis().temp_size_in_bytes < pages.nbytes
    assert compiled.memory_analysis().alias_size_in_bytes >= 4 * pages.nbytes
