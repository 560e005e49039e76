"""What a step costs the host, counted in calls: it must not grow where the work does not."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from benchmarks.host_scaling import PAGE_SIZE, Point, World
from benchmarks.null_device import NullPrograms
from benchmarks.turn_clock import PHASES

SLOTS = 4


@pytest.fixture(scope="module")
def started() -> World:
    return World(1, SLOTS)


@pytest.fixture
def world(started: World) -> Iterator[World]:
    yield started
    started.clear()


def calls(world: World, turns: int = PAGE_SIZE) -> int:
    """Calls of functions, Python's and C's, in so many turns; as many turns as a page has tokens see every row
    grow by one page.
    """
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    for _ in range(turns):
        sys.setprofile(note)
        try:
            world.clock._turn()
        finally:
            sys.setprofile(None)
        world.drain()
    return count


def test_the_engine_runs_programs_that_compute_nothing(world: World) -> None:
    """Else the time of a step would not be the host's alone."""
    assert isinstance(world.core.runner._programs, NullPrograms)


def test_a_decode_step_costs_the_same_at_any_context(world: World) -> None:
    costs = []
    for context in (512, 16 * 1024):
        world.fill(SLOTS, context)
        costs.append(calls(world))
        world.clear()
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


def test_a_decode_step_costs_the_same_however_many_wait(world: World) -> None:
    costs = []
    for waiting in (1, 300):
        world.fill(SLOTS, 512)
        world.queue(waiting)
        costs.append(calls(world))
        world.clear()
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


def test_a_row_more_costs_few_calls(world: World) -> None:
    """256 rows in Python at 40 ns a call: 20 calls a row are 0.2 ms a step."""
    costs = {}
    for rows in (2, 4):
        world.fill(rows, 512)
        costs[rows] = calls(world)
        world.clear()
    assert costs[4] - costs[2] <= 20 * 2 * PAGE_SIZE


def test_a_point_holds_every_phase(world: World) -> None:
    world.fill(2, 512)
    point = world.measure(Point("rows", 1, 2), 5)
    assert set(point.phases_us) == set(PHASES)
    assert point.turns == 5
    assert 0 < point.cpu_us <= point.longest_us
    assert all(value >= 0 for value in point.phases_us.values())
    assert point.phases_us["dispatch"] > 0
