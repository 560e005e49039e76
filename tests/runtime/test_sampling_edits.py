"""Penalties, biases, banned tokens and masks edit the logits as the definition says, before anything is drawn."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jserve.runtime import sampling
from tests.runtime.sampling_definition import (
    EDITS,
    FEW,
    MANY,
    SLOTS,
    V,
    distribution,
    edited_definition,
    pack,
    pack_masks,
    random_logits,
    random_state,
    sample,
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
