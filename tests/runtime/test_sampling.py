"""The sampler against a plain float64 definition: choice, filters, penalties, draws and log-probabilities."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.protocol import MAX_LOGPROBS
from jserve.runtime import sampling
from jserve.runtime.pack import FIELDS
from jserve.runtime.sampling import SCORE_COLUMNS, VARIANTS, Variant
from tests.runtime.sampling_definition import (
    DRAWS,
    EDITS,
    FEW,
    MANY,
    SLOTS,
    V,
    distribution,
    draw_many,
    pack,
    pack_masks,
    random_logits,
    random_state,
    sample,
)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_row_without_temperature_gets_the_likeliest_token_in_every_variant(variant: Variant) -> None:
    logits = random_logits(FEW, V)
    tokens = sample(variant, logits, [{"seed": seed} for seed in range(FEW)])[0]
    np.testing.assert_array_equal(tokens, logits.argmax(1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_greedy_takes_the_first_of_equal_tokens(variant: Variant) -> None:
    logits = random_logits(FEW, V)
    best = logits.max(1)
    for row, places in enumerate(((5, 599), (0, 1), (255, 256, 257), (300, 598))):
        logits[row, list(places)] = best[row] + 1
    assert sample(variant, logits, [{}] * FEW)[0][:4].tolist() == [5, 0, 255, 300]


FILTERS: dict[str, dict[str, Any]] = {
    "top-k": {"top_k": 50},
    "top-k of everything": {"top_k": V},
    "top-p": {"top_p": 0.15},
    "tiny top-p": {"top_p": 1e-6},
    "min-p": {"min_p": 0.9},
    "min-p, then top-k": {"min_p": 0.9, "top_k": 30},
    "min-p, then top-p": {"min_p": 0.8, "top_p": 0.3},
    "top-k, then top-p": {"top_k": 60, "top_p": 0.5},
    "all": {"min_p": 0.85, "top_k": 70, "top_p": 0.7},
    "top-p zero": {"top_p": 0.0},
}


@pytest.mark.parametrize("case", FILTERS)
def test_filters_keep_exactly_the_tokens_that_the_definition_keeps(case: str) -> None:
    """At a high temperature what is left is about equally likely, so MANY draws see all of it."""
    temperature, logits = 60.0, random_logits(V, seed=3)
    expected = np.flatnonzero(distribution(logits, temperature, **FILTERS[case]))
    drawn = draw_many(logits, temperature=temperature, **FILTERS[case])
    assert set(drawn) <= set(expected)
    if len(expected) <= 100:
        assert set(drawn) == set(expected)


@pytest.mark.parametrize("seed", range(8))
def test_top_k_of_one_is_greedy_at_any_temperature(seed: int) -> None:
    logits = random_logits(V, seed=seed)
    assert set(draw_many(logits, top_k=1, temperature=5.0)) == {int(logits.argmax())}


def test_top_p_keeps_the_token_that_reaches_it_and_none_after() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625, *[1e-30] * 7], np.float32))
    for top_p, kept in ((0.4, 1), (0.55, 2), (0.76, 3), (0.88, 5)):
        assert set(draw_many(logits, top_p=top_p)) == set(range(kept)), top_p


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ["plain", *FILTERS])
def test_tokens_are_drawn_as_often_as_the_definition_says(case: str, seed: int) -> None:
    """Chi-square over the tokens; the bound is 6 deviations, which a right sampler passes with any seeds."""
    vocab, temperature = 12, 0.7 + seed
    settings = {name: min(value, 5) for name, value in FILTERS.get(case, {}).items()}
    logits = random_logits(vocab, seed=seed) / 3
    expected = distribution(logits, temperature, **settings) * MANY
    actual = np.bincount(draw_many(logits, temperature=temperature, **settings), minlength=vocab)
    kept = expected > 0
    assert not actual[~kept].any()
    chi_square = ((actual - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = max(kept.sum() - 1, 1)
    assert chi_square < degrees + 6 * np.sqrt(2 * degrees), (actual, expected)


def test_output_index_draws_anew_for_every_token_of_a_request() -> None:
    vocab = 12
    logits = random_logits(vocab) / 3
    rows = [{"temperature": 1.0, "seed": 5, "output_index": index} for index in range(MANY)]
    tokens = sample(DRAWS, np.tile(logits, (MANY, 1)), rows)[0]
    expected = distribution(logits, 1.0) * MANY
    chi_square = ((np.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum()
    assert chi_square < vocab + 6 * np.sqrt(2 * vocab)


@pytest.mark.parametrize("settings", [{}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}], ids=["plain", "filtered"])
def test_same_seed_gives_the_same_token_whatever_rows_place_and_variant(settings: dict[str, Any]) -> None:
    logits = random_logits(FEW, V, seed=1)
    rows = [{"temperature": 1.5, "seed": 900 + row, "output_index": row, **settings} for row in range(FEW)]
    tokens = sample(DRAWS, logits, rows)[0]
    for variant in (v for v in VARIANTS if v.draws and (v.filters or not settings)):
        np.testing.assert_array_equal(sample(variant, logits, rows)[0], tokens)
    for count in (1, 4, MANY):
        for row in (0, 7, 15):
            others = [{"temperature": 0.3, "top_k": 2, "seed": 1}] * (count - 1)
            batch = np.concatenate([random_logits(count - 1, V, seed=9), logits[row : row + 1]])
            assert sample(DRAWS, batch, [*others, rows[row]])[0][-1] == tokens[row]
    assert len(set(tokens)) > 8


def test_neighbours_that_are_greedy_or_padding_change_nothing() -> None:
    logits = random_logits(FEW, V, seed=2)
    rows: list[dict[str, Any]] = [{"temperature": 1.0, "seed": 3, "slots": 0}, {"slots": 1}]
    padded, state, last = sample(EDITS, logits, rows + [{}] * (FEW - 2))
    others = [{"temperature": 2.0, "seed": seed, "top_k": 3} for seed in range(FEW - 2)]
    np.testing.assert_array_equal(sample(EDITS, logits, rows + others)[0][:2], padded[:2])
    assert state is not None
    assert last.tolist() == [*padded[:2], *[-7] * 6]
    assert np.asarray(state.output_counts).sum() == 2


def test_padding_rows_of_zeros_are_harmless() -> None:
    """A padding row has top_p 0 and temperature 0: whatever it yields must not reach a slot."""
    row = dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), 0.0)
    for variant in VARIANTS:
        logits = np.concatenate([random_logits(1, V), np.zeros((FEW - 1, V), np.float32)])
        output, _, last = sample(variant, logits, [{"slots": 4}] + [row] * (FEW - 1))
        assert output[0] == logits[0].argmax()
        assert last.tolist() == [-7, -7, -7, -7, output[0], -7, -7, -7]


def test_draw_of_the_only_token_with_mass_takes_it() -> None:
    """Also where its clock is the slowest there is and all others are at zero."""
    logits = np.full((MANY, V), -np.inf, np.float32)
    places = np.random.default_rng(0).integers(0, V, MANY)
    logits[np.arange(MANY), places] = 0.0
    rows = [{"temperature": 1.0, "seed": 3, "output_index": index} for index in range(MANY)]
    np.testing.assert_array_equal(sample(DRAWS, logits, rows)[0], places)


def test_rounding_of_the_logits_all_but_never_changes_a_draw() -> None:
    """A vocabulary with much of its mass in its tail, where a search in a running sum would land elsewhere."""
    rng, vocab = np.random.default_rng(0), 49_152
    logits = np.tile(rng.normal(0, 1.5, (1, vocab)).astype(np.float32), (512, 1))
    rows = [{"temperature": 1.0, "seed": 3, "output_index": index} for index in range(512)]
    noise = rng.normal(0, 1e-5, logits.shape).astype(np.float32)
    assert (sample(DRAWS, logits, rows)[0] != sample(DRAWS, logits + noise, rows)[0]).sum() <= 1


def test_clocks_of_different_tokens_rows_and_steps_are_independent() -> None:
    """Correlations of 2**20 pairs; 6 standard deviations of independent ones are 0.006."""
    batch = sampling.SamplingInput(
        **{name: np.zeros(64) for name in sampling.SamplingInput.__dataclass_fields__}
        | {"seed": np.repeat(np.arange(8), 8), "output_index": np.tile(np.arange(8), 8)}
    )
    clocks = np.asarray(sampling._clocks(batch, 2**14), np.float64)
    assert clocks.min() > 0
    assert abs(clocks.mean() - 1) < 0.006
    assert abs(clocks.var() - 1) < 0.02
    by_place = clocks.reshape(8, 8, -1)
    for shifted in (np.roll(by_place, 1, 0), np.roll(by_place, 1, 1), np.roll(by_place, 1, 2)):
        assert abs(np.corrcoef(by_place.ravel(), shifted.ravel())[0, 1]) < 0.006


@pytest.mark.parametrize("vocab", [V, 20, 7])
def test_logprobs_are_those_of_the_unmodified_logits(vocab: int) -> None:
    logits = random_logits(FEW, vocab, seed=7)
    rows: list[dict[str, Any]] = [{"temperature": 2.0, "seed": seed, "top_k": 3} for seed in range(FEW - 1)]
    rows.append({"slots": 1})
    state = sampling.empty_state(SLOTS, vocab)
    np.asarray(state.bias)[1, vocab - 1] = 100.0
    tokens, _, _ = sample(EDITS, logits, rows, state)
    output = np.asarray(jax.jit(sampling.logprobs_of)(logits, tokens))
    assert output.shape[1] == SCORE_COLUMNS
    wide = logits.astype(np.float64)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    floats = output.view(np.float32)
    assert tokens[-1] == vocab - 1
    chosen = np.take_along_axis(wide, tokens[:, None], 1)
    np.testing.assert_allclose(floats[:, 0], chosen[:, 0], atol=2e-6)
    np.testing.assert_array_equal(output[:, 1], (wide > chosen).sum(1) + 1)
    count = min(MAX_LOGPROBS, vocab)
    np.testing.assert_array_equal(output[:, 2 : 2 + count], np.argsort(-wide, 1)[:, :count])
    best = floats[:, 2 + MAX_LOGPROBS :]
    np.testing.assert_allclose(best[:, :count], -np.sort(-wide, 1)[:, :count], atol=2e-6)
    assert (best[:, count:] == -np.inf).all()


@pytest.mark.parametrize("vocab", [3000, 2561, 2560, 40])
def test_the_largest_few_are_those_of_a_sort_the_first_of_equals_first(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    x = rng.integers(0, 9, (FEW, vocab)).astype(np.float32)  # ties everywhere
    x[1] = -np.inf
    x[2, rng.permutation(vocab)[: vocab - 7]] = -np.inf
    x[3] = rng.standard_normal(vocab)
    values, ids = jax.jit(partial(sampling.largest, count=MAX_LOGPROBS))(x)
    order = np.argsort(-x, axis=1, kind="stable")[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


def test_a_few_rows_taken_apart_get_the_tokens_the_counts_and_the_logprobs_of_the_whole() -> None:
    logits, state = random_logits(FEW, V, seed=9), random_state()
    rows: list[dict[str, Any]] = [{"temperature": 1.0, "seed": seed} for seed in range(FEW)]
    special = {3: {"top_k": 3}, 9: {"repetition_penalty": 1.4, "slots": 5}, 12: {"frequency_penalty": 0.5, "slots": 2}}
    for row, fields in special.items():
        rows[row] |= fields
    rows[0]["slots"], rows[3]["slots"] = 1, 6
    allowed = np.random.default_rng(1).random((FEW, V)) < 0.2
    allowed[[row for row in range(FEW) if row not in special]] = True
    np.asarray(state.bias)[1] = 0  # of row 0, which is not edited; the other plain rows are padding
    before = jax.tree.map(np.copy, state)
    tokens, after, last = sample(EDITS, logits, rows, state, allowed)
    assert after is not None

    packed = np.zeros((len(FIELDS) + 1, 4), np.int32)
    packed[:-1] = pack([*(rows[row] for row in special), {}])
    packed[-1] = [*special, FEW]
    plain = [{**row, "slots": SLOTS} if number in special else row for number, row in enumerate(rows)]
    output, _, first = sample(Variant(draws=True), logits, plain)
    masks = pack_masks(np.concatenate([allowed[list(special)], np.ones((1, V), bool)]))
    sampler = jax.jit(sampling.make_few_sampler(sampling.take_rows))
    few_last, few_state, output = sampler(logits, output, first, before, packed, masks)
    numbers = [0, *special]
    np.testing.assert_array_equal(output[jnp.array(numbers)], tokens[numbers])
    np.testing.assert_array_equal(few_last, last)
    counts = np.asarray(few_state.output_counts)
    edited = [5, 2, 6]
    np.testing.assert_array_equal(counts[edited], np.asarray(after.output_counts)[edited])
    np.testing.assert_array_equal(np.delete(counts, edited, 0), np.delete(before.output_counts, edited, 0))

    scores = jax.jit(sampling.make_few_logprobs(sampling.take_rows))(logits, output, np.array([9, 3, 12]))
    whole = jax.jit(sampling.logprobs_of)(logits, output)
    np.testing.assert_array_equal(scores, np.asarray(whole)[[9, 3, 12]])
