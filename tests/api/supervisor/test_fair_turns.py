"""Turns go round by owner; one that is given up is passed on."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from jserve.api.supervisor.fair_turns import FairTurns


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Scene:
    """Jobs that note when their turn comes, and hold it until they are let go."""

    def __init__(self, count: int) -> None:
        self.turns = FairTurns(count)
        self.served: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, owner: str, *names: str) -> None:
        for name in names:
            self.held[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._job(owner, name))
            await asyncio.sleep(0)

    async def _job(self, owner: str, name: str) -> None:
        async with self.turns.turn(owner):
            self.served.append(name)
            await self.held[name].wait()

    async def let_go(self, name: str) -> None:
        self.held[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)


@in_a_loop
async def test_one_who_asks_for_many_delays_no_other() -> None:
    scene = Scene(1)
    await scene.ask("flood", *(f"f{number}" for number in range(6)))
    await scene.ask("one", "a0", "a1")
    await scene.ask("two", "b0")
    for name in ("f0", "f1", "a0", "b0", "f2", "a1", "f3", "f4", "f5"):
        assert scene.served[-1] == name
        await scene.let_go(name)


@in_a_loop
async def test_as_many_are_served_at_once_as_there_are_turns() -> None:
    scene = Scene(2)
    await scene.ask("one", "a", "b", "c")
    assert scene.served == ["a", "b"]
    await scene.let_go("b")
    assert scene.served == ["a", "b", "c"]


@in_a_loop
async def test_what_is_given_up_takes_no_turn() -> None:
    scene = Scene(1)
    await scene.ask("one", "a", "b", "c", "d")
    scene.tasks["b"].cancel()
    await scene.let_go("a")
    assert scene.served == ["a", "c"]
    scene.held["c"].set()
    scene.tasks["d"].cancel()
    await scene.tasks["c"]
    await scene.ask("two", "e")
    assert scene.served[-1] == "e"


@in_a_loop
async def test_a_turn_that_comes_together_with_the_end_is_passed_on() -> None:
    scene = Scene(1)
    await scene.ask("one", "a", "b", "c")
    scene.held["a"].set()
    while not scene.tasks["a"].done():
        await asyncio.sleep(0)
    scene.tasks["b"].cancel()  # Its turn has been given, and it has not run since.
    for _ in range(3):
        await asyncio.sleep(0)
    assert "c" in scene.served
