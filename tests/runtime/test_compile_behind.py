"""Programs that are compiled while requests are served: in what order, how they give way, and that all come."""

import os
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jserve.runtime.compile_behind import QUIET_S, SHARE, CompileBehind, Load
from jserve.runtime.compile_threads import NICENESS, CompileThreads
from jserve.runtime.executables import Program
from jserve.runtime.program_table import ProgramTable

NAMES = ("a", "b", "c", "d", "e")
COMPILE_S = 3.0


class World:
    """A table of five programs, a compiler that takes its time, and a clock that moves when someone works or sleeps."""

    def __init__(self, *, cpu: float | None = None, broken: str = "") -> None:
        self.now = 100.0
        self.order: list[str] = []
        self.rested: list[float] = []
        self._cpu, self._broken, self._on_core = cpu, broken, 0.0
        every = [Program(name, lambda: None) for name in NAMES]  # type: ignore[arg-type, return-value]
        programs: Any = SimpleNamespace(required=lambda early=False: every[:1], optional=lambda: every[1:])
        store: Any = SimpleNamespace(get=self._get, tidy=lambda: None, untuned=set())
        self.table = ProgramTable(programs, store, None)  # type: ignore[arg-type]
        self.load = Load(lambda: self.now)
        threads: Any = SimpleNamespace(seconds=lambda: None if cpu is None else self._on_core, lower_priority=list)
        self.progress: list[tuple[int, int]] = []
        self.behind = CompileBehind(
            self.table, self.load, threads, self._report, clock=lambda: self.now, sleep=self._sleep
        )

    def _get(self, program: Program, _: object) -> tuple[jax.stages.Compiled, bool]:
        self.order.append(str(program.key))
        self.now += COMPILE_S
        self._on_core += self._cpu or 0.0
        if program.key == self._broken:
            raise RuntimeError("the compiler gives up")
        return program.key, False  # type: ignore[return-value]

    def _report(self, phase: str, done: int, total: int, detail: str) -> None:
        self.progress.append((done, total))
        self.rested.append(0.0)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.rested[-1] += seconds


def test_without_a_load_programs_come_in_the_order_of_their_use_and_without_a_pause() -> None:
    world = World()
    world.behind.work()
    assert world.order == list(NAMES)
    assert sum(world.rested) == 0
    assert world.progress == [(done, 5) for done in range(6)]


def test_what_the_steps_lack_most_comes_next() -> None:
    world = World()
    world.table.note_lack(["d", "e"], 10)
    world.table.note_lack(["c"], 50)
    world.table.note_lack(["e"], 5)
    world.behind.work()
    assert world.order == ["c", "e", "d", "a", "b"]


def test_a_load_that_is_over_counts_for_less_than_the_one_that_runs() -> None:
    world = World()
    world.table.note_lack(["d"], 100)
    assert world.table.next_missing().key == "d"  # type: ignore[union-attr]
    for _ in range(3):
        world.table.next_missing()
    world.table.note_lack(["e"], 20)
    assert world.table.next_missing().key == "e"  # type: ignore[union-attr]


def test_lacks_are_noted_only_while_programs_are_compiled() -> None:
    world = World()
    assert not world.table.notes_lacks
    with world.table.noting_lacks():
        assert world.table.notes_lacks
    assert not world.table.notes_lacks


def test_under_a_load_without_end_all_programs_come_in_a_bounded_share_of_the_time() -> None:
    world = World()
    world.load.tell(is_due=True)
    begin = world.now
    world.behind.work()
    assert sorted(world.order) == list(NAMES)
    assert world.now - begin == pytest.approx(5 * COMPILE_S / SHARE, rel=0.05)


def test_time_that_the_steps_could_not_have_had_calls_for_no_pause() -> None:
    """Threads of a low priority take long, because they are seldom on a core."""
    world = World(cpu=COMPILE_S * SHARE)
    world.load.tell(is_due=True)
    world.behind.work()
    assert sum(world.rested) == pytest.approx(0, abs=0.2)


def test_a_pause_ends_when_nothing_has_been_due_for_a_while() -> None:
    world = World()
    world.load.tell(is_due=True)
    sleep = world._sleep
    rested = []

    def end_of_load(seconds: float) -> None:
        sleep(seconds)
        rested.append(seconds)
        if len(rested) == 3:
            world.load.tell(is_due=False)

    world.behind._sleep = end_of_load
    world.behind.work()
    assert sum(rested) == pytest.approx(0.3 + QUIET_S, abs=0.2)
    assert sorted(world.order) == list(NAMES)


def test_a_moment_between_two_requests_is_not_quiet() -> None:
    world = World()
    assert world.load.is_quiet
    world.load.tell(is_due=True)
    assert not world.load.is_quiet
    world.load.tell(is_due=False)
    world.now += QUIET_S / 2
    assert not world.load.is_quiet
    world.load.tell(is_due=False)
    world.now += QUIET_S
    assert world.load.is_quiet


def test_a_program_that_cannot_be_compiled_does_not_hold_up_the_others() -> None:
    world = World(broken="b")
    world.table.note_lack(["b"], 1000)
    world.behind.work()
    assert world.order == ["b", "a", "c", "d", "e"]
    assert (world.table.count().ready, world.table.count().failed) == (4, 1)


def test_threads_that_compile_are_known_and_those_that_run_programs_are_not() -> None:
    """By what each does: the names of both are cut off or missing."""
    threads = CompileThreads()
    x = jax.numpy.arange(1e6)

    def program(factor: float) -> jax.stages.Lowered:
        def waves(x: jax.Array) -> jax.Array:
            for place in range(40):
                x = jax.numpy.cumsum(jax.numpy.sin(x * factor + place))
            return x

        return jax.jit(waves).lower(x)

    lowered = program(2.0)
    with threads.watch():
        compiled = lowered.compile()
    threads.lower_priority()
    assert {os.getpriority(os.PRIO_PROCESS, each) for each in threads.ids} <= {
        min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    }
    if not threads.ids:
        pytest.skip("this system does not say how long threads were on a core")
    before = threads.seconds()
    for _ in range(20):
        compiled(x).block_until_ready()
    assert before is not None
    while_running = (threads.seconds() or 0.0) - before
    program(3.0).compile()
    assert (threads.seconds() or 0.0) - before - while_running > 10 * while_running
