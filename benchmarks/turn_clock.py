"""Times the parts of the engine's turn: receive, schedule, pack, dispatch, collect, update, send."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from jserve.engine.core import EngineCore
from jserve.ipc import EngineSocket
from jserve.runtime import runner
from jserve.runtime.pack import SlotSampling
from jserve.runtime.runner import Runner
from jserve.schedule.scheduler import Scheduler

PHASES = ("receive", "schedule", "pack", "dispatch", "collect", "update", "send", "other")
PARTS: tuple[tuple[Any, str, str], ...] = (
    (EngineSocket, "receive", "receive"),
    (EngineCore, "add", "receive"),
    (EngineCore, "abort", "receive"),
    (Scheduler, "schedule", "schedule"),
    (runner, "pack_batch", "pack"),
    (SlotSampling, "pack", "pack"),
    (Runner, "dispatch", "dispatch"),
    (Runner, "sample", "dispatch"),
    (Runner, "collect", "collect"),
    (Scheduler, "update", "update"),
    (EngineCore, "stats", "send"),
    (EngineSocket, "send", "send"),
)


@dataclass(slots=True)
class Turns:
    """Seconds of each turn; of the loop's thread, by the wall clock and by the processor's time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    """Processor time, so without waiting; empty where only whole turns were timed."""


class TurnClock:
    """Runs turns and times them, whole or in parts. A part within another counts for the inner one alone."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn = turn
        self._spent: dict[str, float] = {}
        self._inner = [0.0]

    def whole(self, count: int, between: Callable[[], None]) -> Turns:
        """Time `count` turns; `between` is called before each, and not timed."""
        turns = Turns()
        for _ in range(count):
            between()
            cpu, wall = time.thread_time(), time.perf_counter()
            self._turn()
            turns.wall.append(time.perf_counter() - wall)
            turns.cpu.append(time.thread_time() - cpu)
        return turns

    def in_parts(self, count: int, between: Callable[[], None]) -> Turns:
        """The same with the phases of every turn. The clocks themselves cost some 10 us a turn."""
        turns = Turns()
        with self._parts_timed():
            for _ in range(count):
                between()
                self._spent = dict.fromkeys(PHASES, 0.0)
                wall = time.perf_counter()
                with self._time("other"):
                    self._turn()
                turns.wall.append(time.perf_counter() - wall)
                turns.cpu.append(sum(self._spent.values()))
                turns.phases.append(self._spent)
        return turns

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        self._inner.append(0.0)
        start = time.thread_time()
        try:
            yield
        finally:
            elapsed = time.thread_time() - start
            self._spent[phase] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed

    @contextmanager
    def _parts_timed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, phase in PARTS:
                stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), phase)))
            yield

    def _timed(self, function: Any, phase: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with self._time(phase):
                return function(*args, **options)

        return call
