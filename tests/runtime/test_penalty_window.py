"""Penalties that look at the newest tokens only: at each step the device has counted exactly those."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.batch import SamplingState
from jserve.runtime.pack import SlotSampling, bias_row, history_rows
from jserve.runtime.sampling import Variant, empty_state, install
from tests.runtime.sampling_definition import compiled
from tests.runtime.test_pack import SHAPE, chunk, pack_sampling, plan_of, sequence

V = SHAPE.vocab_size
EDITS = Variant(draws=True, filters=True, edits=True)


def generate(windows: list[int | None], prompts: list[list[int]], steps: int, **penalties: float) -> list[list[int]]:
    """Tokens of sequences that run together, with counts checked before each step that knows them all."""
    slots = SlotSampling(SHAPE)
    state: Any = jax.tree.map(jnp.asarray, empty_state(SHAPE.max_num_seqs, V))
    sequences = []
    for slot, (window, prompt) in enumerate(zip(windows, prompts, strict=True)):
        sequences.append(sequence(prompt, name=str(slot), temperature=0.0, penalty_window=window, **penalties))
        slots.enter(slot, sequences[slot])
        rows = *history_rows(sequences[slot], V), bias_row(sequences[slot], 0, V)
        state = install(state, np.int32(slot), *rows)
    last = np.zeros(SHAPE.max_num_seqs, np.int32)
    masks = np.full((4, 1), -1, np.int32)
    for step in range(steps):
        logits = np.random.default_rng(step).standard_normal((4, V)).astype(np.float32)
        logits[:] = logits[0]
        chunks = [chunk(one, slot, len(one.token_ids) - 1, 1) for slot, one in enumerate(sequences)]
        packed = pack_sampling(slots, plan_of(*chunks))
        last, state, tokens = compiled(EDITS)(logits, last, state, packed, masks)
        for slot, one in enumerate(sequences):
            one.token_ids.append(int(tokens[slot]))
            _check_counts(state, slot, one.token_ids[:-1], windows[slot], int(tokens[slot]))
    return [list(one.token_ids) for one in sequences]


def _check_counts(state: SamplingState, slot: int, before: Any, window: int | None, token: int) -> None:
    if window is not None:
        expected = np.bincount([*list(before)[-window:], token], minlength=V)
        np.testing.assert_array_equal(np.asarray(state.output_counts)[slot], expected)


@pytest.mark.parametrize("window", [1, 2, 4, 7, 100])
def test_counts_are_those_of_the_newest_tokens(window: int) -> None:
    generate([window], [[3, 3, 5, 7, 3]], 12, repetition_penalty=1.3, frequency_penalty=0.1)


def test_a_token_that_has_left_the_window_is_no_longer_penalised() -> None:
    """With a penalty that forbids what it sees, no token comes twice within a window, and some do beyond it."""
    [tokens] = generate([4], [[1, 2]], 40, presence_penalty=100.0)
    near = [tokens[max(0, place - 4) : place] for place in range(2, len(tokens))]
    assert all(token not in before for token, before in zip(tokens[2:], near, strict=True))
    assert len(set(tokens)) < len(tokens)


def test_a_window_does_not_depend_on_its_neighbours() -> None:
    together = generate([3, None, 50], [[1, 2, 3], [4], [5, 6]], 10, repetition_penalty=2.0)
    for window, prompt, tokens in zip([3, None, 50], [[1, 2, 3], [4], [5, 6]], together, strict=True):
        assert generate([window], [prompt], 10, repetition_penalty=2.0) == [tokens]


def test_a_sequence_that_comes_back_after_preemption_goes_on_with_its_window() -> None:
    [whole] = generate([4], [[1, 2]], 10, presence_penalty=100.0)
    counts, in_prompt = history_rows(sequence(whole, 2, penalty_window=4), V)
    assert counts.tolist() == np.bincount(whole[-4:], minlength=V).tolist()
    assert not in_prompt.any()
