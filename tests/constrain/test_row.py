"""Budgets, bad words and sets of bits against definitions that look at the whole output."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jserve.constrain.bits import all_tokens, as_mask, bits_of, contains, fixed_tokens, is_empty, keep_only, without
from jserve.constrain.constraint import BadWords, BudgetCount
from jserve.constrain.masks import MaskMaker, MaskRow
from jserve.constrain.row import RowConstraint
from jserve.protocol import SamplingParams, ThinkingBudget

V = 70
"""Two words of 32 bits and a part of a third."""
tokens = st.lists(st.integers(0, 4), max_size=30)
words = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)
few = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)


def row_of(*ids: int) -> np.ndarray:
    return bits_of(ids, V)


@given(st.sets(st.integers(0, V - 1)))
def test_bits_hold_exactly_their_tokens(ids: set[int]) -> None:
    row = bits_of(ids, V)
    assert set(np.flatnonzero(as_mask(row, V))) == ids
    assert {token for token in range(V) if contains(row, token)} == ids
    assert is_empty(row, V) == (not ids)


def test_bits_beyond_the_vocabulary_are_no_tokens() -> None:
    everything = all_tokens(V)[0]
    rest = everything & ~bits_of(range(V), V)
    assert rest.any()
    assert is_empty(rest, V)
    assert not bits_of([V, -1, 10**6], V).any()
    assert np.array_equal(without(everything, bits_of(range(V), V), V), everything)


def test_keep_only_leaves_one_token() -> None:
    row = all_tokens(V)[0]
    keep_only(row, 63)
    assert np.flatnonzero(as_mask(row, 96)).tolist() == [63]


def test_fixed_tokens_are_the_allowed_ones_less_single_bad_words() -> None:
    params = SamplingParams(allowed_token_ids=(3, 5, 69), bad_words=((5,), (3, 4)))
    assert np.flatnonzero(as_mask(fixed_tokens(params, V), V)).tolist() == [3, 69]
    params = SamplingParams(bad_words=((5,), (3, 4)))
    assert np.flatnonzero(~as_mask(fixed_tokens(params, V), V)).tolist() == [5]


@given(words, tokens)
def test_token_is_forbidden_exactly_where_it_would_complete_a_bad_word(
    bad: list[tuple[int, ...]], out: list[int]
) -> None:
    constraint = BadWords(tuple(bad))
    for token in out:
        constraint.advance(token)
    row = all_tokens(V)[0]
    constraint.restrict(row)
    for token in range(5):
        extended = [*out, token]
        completes = any(len(word) > 1 and tuple(extended[-len(word) :]) == word for word in bad)
        assert contains(row, token) != completes


@given(words, st.randoms(use_true_random=False))
def test_output_under_bad_words_never_has_one(bad: list[tuple[int, ...]], rng: object) -> None:
    constraint = RowConstraint(SamplingParams(bad_words=tuple(bad), max_tokens=30), V, frozenset())
    out: list[int] = []
    for _ in range(30):
        row = all_tokens(V)[0]
        constraint.restrict(row)
        token = rng.choice([token for token in [*range(5), 60] if contains(row, token)])  # type: ignore[attr-defined]
        constraint.advance(token)
        out.append(token)
    assert not [w for w in bad for i in range(31 - len(w)) if tuple(out[i : i + len(w)]) == w]


def reasoning_tokens(out: list[int], budget: ThinkingBudget) -> tuple[int, bool]:
    """By scanning the whole output: how many tokens of reasoning there are, and whether it is open at the end."""
    inside, start, total, place = budget.is_open, 0, 0, 0
    while place < len(out):
        place += 1
        marker = budget.end if inside else budget.begin
        if place - start >= len(marker) and tuple(out[place - len(marker) : place]) == marker:
            total += place - start - len(marker) if inside else 0
            inside, start = not inside, place
    return total + (place - start if inside else 0), inside


@given(few, few, st.booleans(), st.integers(0, 9), tokens)
def test_end_is_due_exactly_when_the_budget_is_used_up(
    begin: tuple[int, ...], end: tuple[int, ...], is_open: bool, size: int, out: list[int]
) -> None:
    budget = ThinkingBudget(size, begin, end, is_open)
    count = BudgetCount(budget)
    for token in out:
        count.advance(token)
    used, inside = reasoning_tokens(out, budget)
    due = count.due()
    assert bool(due) == (inside and used >= size)
    if due:
        assert end[len(end) - len(due) :] == due


@given(few, few, st.booleans(), st.integers(0, 9), st.lists(st.integers(0, 3), min_size=60, max_size=60))
def test_forced_output_has_at_most_the_budget_of_reasoning(
    begin: tuple[int, ...], end: tuple[int, ...], is_open: bool, size: int, wishes: list[int]
) -> None:
    budget = ThinkingBudget(size, begin, end, is_open)
    constraint = RowConstraint(SamplingParams(thinking_budget=budget), V, frozenset())
    out: list[int] = []
    for wish in wishes:
        row = all_tokens(V)[0]
        constraint.restrict(row)
        allowed = np.flatnonzero(as_mask(row, V))
        token = int(allowed[0]) if len(allowed) == 1 else wish
        constraint.advance(token)
        out.append(token)
        used, inside = reasoning_tokens(out, budget)
        assert used <= size + len(end) * inside
        if not inside:
            assert used <= size


def test_min_tokens_bans_stops_only_where_another_token_is_left() -> None:
    params = SamplingParams(bad_words=((1, 2),), allowed_token_ids=(7, 9), stop_token_ids=(9,), min_tokens=2)
    constraint = RowConstraint(params, V, frozenset({8}))
    actual = []
    for _ in range(3):
        row = all_tokens(V)[0]
        constraint.restrict(row)
        actual.append(np.flatnonzero(as_mask(row, V)).tolist())
        constraint.advance(7)
    assert actual == [[7], [7], [7, 9]]


def test_rows_without_a_choice_are_named_and_left_open_and_others_filled() -> None:
    stuck = RowConstraint(SamplingParams(bad_words=((1, 2),), allowed_token_ids=(2,)), V, frozenset())
    fine = RowConstraint(SamplingParams(bad_words=((1, 2),)), V, frozenset())
    masks, failed = MaskMaker(V).fill([MaskRow(1, stuck, [1]), MaskRow(2, fine, [3, 1])], 4)
    assert list(failed) == [1]
    assert "no token is left" in failed[1]
    bits = as_mask(masks.view(np.uint32).reshape(-1), 4 * 96).reshape(4, 96)[:, :V]
    assert bits[[0, 1, 3]].all()
    assert np.flatnonzero(~bits[2]).tolist() == [2]
