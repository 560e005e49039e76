"""The sampler against a plain float64 definition: choice, filters, penalties, draws and log-probabilities."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.batch import SamplingState
from jserve.protocol import MAX_LOGPROBS
from jserve.runtime import sampling
from jserve.runtime.pack import FIELDS
from jserve.runtime.sampling import INTEGER_FIELDS, SCORE_COLUMNS, VARIANTS, Variant, make_sampler

V = 600
"""Three blocks of a draw's search, the last one not full."""
SLOTS = 8
FEW = 16
"""Rows of most batches here: every new shape costs a compile."""
MANY = 2048
"""Draws of one setting: enough to see each of 100 tokens that are about equally likely."""
DRAWS = Variant(draws=True, filters=True)
EDITS = Variant(draws=True, filters=True, edits=True)

NEUTRAL: dict[str, Any] = {"slots": SLOTS, "top_k": V, "leaving": 1 << 30, "top_p": 1.0, "repetition_penalty": 1.0}


def pack(rows: list[dict[str, Any]], vocab: int = V) -> np.ndarray:
    """i32[11, S]; what a row leaves out is off."""
    packed = np.zeros((len(FIELDS), len(rows)), np.int32)
    floats = packed.view(np.float32)
    for number, row in enumerate(rows):
        for name, value in {**NEUTRAL, "top_k": vocab, **row}.items():
            line = FIELDS[name]
            (packed if line < INTEGER_FIELDS else floats)[line, number] = value
    return packed


def pack_masks(allowed: np.ndarray) -> np.ndarray:
    """i32[S, ceil(V / 32)] of bool[S, V]."""
    masks = np.zeros((len(allowed), -(-allowed.shape[1] // 32)), np.int64)
    for row, token in zip(*np.nonzero(allowed), strict=True):
        masks[row, token // 32] |= 1 << (token % 32)
    return masks.astype(np.uint32).view(np.int32)


@cache
def compiled(variant: Variant) -> Any:
    return jax.jit(make_sampler(variant))


def sample(
    variant: Variant,
    logits: np.ndarray,
    rows: list[dict[str, Any]],
    state: SamplingState | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, SamplingState | None, np.ndarray]:
    """The tokens i32[S], the state after, and last_token after. `allowed` is bool[S, V]."""
    vocab = logits.shape[1]
    if variant.edits and state is None:
        state = sampling.empty_state(SLOTS, vocab)
    last = np.full(SLOTS, -7, np.int32)
    masks = None
    if variant.edits:
        masks = pack_masks(np.ones(logits.shape, bool) if allowed is None else allowed)
    last, state, output = compiled(variant)(logits, last, state if variant.edits else None, pack(rows, vocab), masks)
    return np.asarray(output), state, np.asarray(last)


def draw_many(logits: np.ndarray, **row: Any) -> np.ndarray:
    """MANY draws from f32[V], each with a seed of its own."""
    rows = [{"temperature": 1.0, "seed": seed, **row} for seed in range(MANY)]
    return sample(DRAWS, np.tile(logits, (MANY, 1)), rows)[0]


def distribution(
    logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """f64[V]: the definition. min-p, top-k and top-p in this order, each on what the one before it left."""
    scaled = logits.astype(np.float64) / temperature
    mass = np.exp(scaled - scaled.max())
    mass[mass < min_p] = 0.0
    order = np.argsort(-mass)
    if top_k:
        mass[order[top_k:]] = 0.0
    share = np.cumsum(mass[order]) / mass.sum()
    mass[order[np.searchsorted(share, top_p) + 1 :]] = 0.0  # the token that reaches top_p stays
    return mass / mass.sum()


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(np.float32)


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


def edited_definition(logits: np.ndarray, row: dict[str, Any], state: SamplingState) -> np.ndarray:
    """f64[V]: bias, repetition over prompt and output, frequency and presence over the output."""
    slot = row["slots"]
    counts = np.asarray(state.output_counts)[slot].astype(np.float64)
    out = logits.astype(np.float64) + np.asarray(state.bias)[slot]
    seen = np.asarray(state.in_prompt)[slot] | (counts > 0)
    penalty = row.get("repetition_penalty", 1.0)
    out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
    return out - counts * row.get("frequency_penalty", 0.0) - (counts > 0) * row.get("presence_penalty", 0.0)


def random_state(seed: int = 0) -> SamplingState:
    rng = np.random.default_rng(seed)
    bias = np.where(rng.random((SLOTS, V)) < 0.1, rng.choice([-100, -3, 2, 100], (SLOTS, V)), 0)
    return SamplingState(
        rng.poisson(0.5, (SLOTS, V)).astype(np.int16),  # type: ignore[arg-type]
        rng.random((SLOTS, V)) < 0.3,  # type: ignore[arg-type]
        bias.astype(np.float32),  # type: ignore[arg-type]
    )


EDIT_ROWS: list[dict[str, Any]] = [
    {"slots": 0},
    {"slots": 1, "repetition_penalty": 1.4},
    {"slots": 2, "frequency_penalty": 1.5},
    {"slots": 3, "presence_penalty": 2.0},
    {"slots": 4, "repetition_penalty": 0.6, "frequency_penalty": -1.0, "presence_penalty": -2.0},
    {"slots": 5, "repetition_penalty": 2.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
    *[{}] * (FEW - 6),
]


def test_penalties_and_bias_edit_the_logits_as_defined() -> None:
    logits, state = random_logits(FEW, V, seed=4), random_state()
    edited = np.asarray(sampling.edit_logits(logits, state, sampling.split_sampling(pack(EDIT_ROWS))))
    expected = [edited_definition(*pair, state) for pair in zip(logits, EDIT_ROWS, strict=True) if pair[1]]
    np.testing.assert_allclose(edited[:6], expected, rtol=1e-6, atol=1e-5)  # a few float32 roundings of up to 200
    tokens, after, _ = sample(EDITS, logits, EDIT_ROWS, state)
    assert tokens[:6].tolist() == [row.argmax() for row in expected]
    assert after is not None
    gained = np.asarray(after.output_counts) - np.asarray(state.output_counts)
    assert np.argwhere(gained).tolist() == [[row, token] for row, token in enumerate(tokens[:6])]


def test_bias_of_a_hundred_forces_and_of_minus_a_hundred_forbids() -> None:
    logits = random_logits(V, seed=5)
    best = int(logits.argmax())
    state = sampling.empty_state(SLOTS, V)
    np.asarray(state.bias)[0, 17] = 100.0
    np.asarray(state.bias)[1, best] = -100.0
    rows = [{"slots": seed % 2, "temperature": 1.0, "seed": seed} for seed in range(MANY)]
    tokens = sample(EDITS, np.tile(logits, (MANY, 1)), rows, state)[0]
    assert set(tokens[::2]) == {17}
    assert best not in tokens[1::2]


def test_banned_tokens_are_never_drawn() -> None:
    """A ban is a bias of minus infinity; penalties must not turn it into something that is not a number."""
    logits = random_logits(V, seed=6)
    banned = np.argsort(-logits)[:3]
    state = replace(random_state(), bias=np.zeros((SLOTS, V), np.float32))  # type: ignore[arg-type]
    np.asarray(state.bias)[:, banned] = -np.inf
    penalties = {"repetition_penalty": 0.5, "frequency_penalty": -2.0, "presence_penalty": -2.0}
    rows = [{"slots": 2, "temperature": seed % 2, "seed": seed, **penalties} for seed in range(MANY)]
    tokens = sample(EDITS, np.tile(logits, (MANY, 1)), rows, state)[0]
    assert not set(tokens) & set(banned)


@pytest.mark.parametrize("vocab", [V, 64, 33, 7])
def test_masks_unpack_to_the_tokens_that_they_allow(vocab: int) -> None:
    allowed = np.random.default_rng(vocab).random((FEW, vocab)) < 0.5
    np.testing.assert_array_equal(sampling.unpack_masks(pack_masks(allowed), vocab), allowed)


def test_masked_rows_draw_from_what_is_allowed_as_the_definition_says_and_others_as_ever() -> None:
    """Filters act on what the mask leaves: a top-k of 4 is the 4 best of the allowed tokens."""
    logits = random_logits(V, seed=8)
    allowed = np.ones((MANY, V), bool)
    some = np.random.default_rng(1).random(V) < 0.1
    allowed[::2] = some
    settings = {"top_k": 4, "top_p": 0.999}
    rows = [{"temperature": 3.0, "seed": seed, **settings} for seed in range(MANY)]
    tokens = sample(EDITS, np.tile(logits, (MANY, 1)), rows, allowed=allowed)[0]
    for part, kept in ((tokens[::2], some), (tokens[1::2], np.ones(V, bool))):
        masked = np.where(kept, logits, -np.inf)
        expected = distribution(masked, 3.0, **settings) * len(part)
        assert set(part) == set(np.argsort(-masked)[:4])
        actual = np.bincount(part, minlength=V)
        chi_square = ((actual - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
        assert chi_square < 3 + 6 * np.sqrt(6)


@pytest.mark.parametrize("allowed_token", [0, 31, 32, V - 1])
def test_single_allowed_token_is_chosen_whatever_its_logit_and_the_edits(allowed_token: int) -> None:
    logits, state = random_logits(FEW, V, seed=4), random_state()
    allowed = np.zeros((FEW, V), bool)
    allowed[:, allowed_token] = True
    rows = [{**row, "temperature": float(number % 2), "top_k": 3} for number, row in enumerate(EDIT_ROWS)]
    output, _, _ = sample(EDITS, logits, rows, state, allowed)
    assert set(output) == {allowed_token}
    wide = logits.astype(np.float64)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    logprobs = np.asarray(jax.jit(sampling.logprobs_of)(logits, output)).view(np.float32)[:, 0]
    np.testing.assert_allclose(logprobs, wide[:, allowed_token], atol=2e-6)


def test_count_of_a_token_stays_at_its_largest() -> None:
    state = sampling.empty_state(SLOTS, V)
    np.asarray(state.output_counts)[0, 9] = 32766
    logits = np.zeros((FEW, V), np.float32)
    logits[0, 9] = 1e6
    for _ in range(3):
        tokens, after, _ = sample(EDITS, logits, [{"slots": 0}] + [{}] * (FEW - 1), state)
        assert after is not None
        assert tokens[0] == 9
        state = after
    assert np.asarray(state.output_counts)[0, 9] == 32767


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
