"""Steps that are padded to a few sizes: what is computed now, and what is left for the next step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jserve.schedule.padding import filled
from jserve.schedule.plan import StepPlan
from tests.schedule.simulated_device import World

SIZES = (16, 32, 64, 128, 256)


@pytest.mark.parametrize(
    ("tokens", "decodes", "overhead", "expected"),
    [
        (64, 0, 20, 64),  # fills its size
        (83, 8, 20, 64),  # 64 + 32 instead of 128
        (83, 8, 32, 83),  # just not worth it
        (120, 8, 20, 120),  # 64 + 64 are no less than 128
        (140, 0, 20, 128),
        (10, 0, 20, 10),  # less than the smallest
        (300, 0, 20, 300),  # more than the largest: not padded
    ],
)
def test_a_step_is_split_where_that_saves_more_than_it_costs(
    tokens: int, decodes: int, overhead: int, expected: int
) -> None:
    assert filled(tokens, decodes, SIZES, overhead) == expected


@given(st.integers(1, 256), st.integers(0, 16), st.integers(0, 64))
def test_a_split_fills_a_size_and_takes_less_in_all(tokens: int, decodes: int, overhead: int) -> None:
    def padded(count: int) -> int:
        return min(size for size in SIZES if size >= count)

    now = filled(tokens, decodes, SIZES, overhead)
    assert 0 < now <= tokens
    if now < tokens:
        assert now in SIZES
        assert now + padded(tokens - now + decodes) + overhead < padded(tokens)


def _lengths(plan: StepPlan | None) -> dict[str, int]:
    assert plan is not None
    return {chunk.sequence.request.request_id: chunk.length for chunk in plan.chunks}


def _world() -> World:
    return World(budget=32, max_model_len=64, step_sizes=lambda rows: (8, 16, 32), step_overhead=0)


def test_the_last_prompt_of_a_step_gets_what_fills_it_and_the_rest_with_the_next_decodes() -> None:
    world = _world()
    world.add("a", [1] * 8, max_tokens=9, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 8}
    world.add("b", [2] * 6, max_tokens=9, ignore_eos=True)
    world.add("c", [3] * 12, max_tokens=9, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 1, "b": 6, "c": 9}
    assert _lengths(world.step()) == {"a": 1, "b": 1, "c": 3}
    world.run()
    world.check_outcome()


def test_an_earlier_prompt_is_never_cut_for_what_a_later_one_shares_of_it() -> None:
    world = _world()
    world.add("a", [1] * 16, max_tokens=3, ignore_eos=True)
    world.add("b", [1] * 16 + [2], max_tokens=3, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 16, "b": 1}
    world.run()
    world.check_outcome()
    assert world.deltas["b"][0].num_cached_tokens == 16


def test_sizes_are_those_of_steps_with_as_many_rows() -> None:
    sizes = {1: (8, 16, 32), 2: (16, 32)}
    world = World(budget=32, step_sizes=lambda rows: sizes[rows], step_overhead=0)
    world.add("a", [1] * 10, max_tokens=9, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 10}
    world.add("b", [2] * 10, salt="b", max_tokens=9, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 1, "b": 10}
