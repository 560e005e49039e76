"""The engine's loop, taken apart so that every stage of a step is timed. For benchmarks.step_time."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax

from jserve.engine.core import EngineCore
from jserve.runtime import pack
from jserve.runtime import runner as runner_module
from jserve.runtime.runner import Launched
from jserve.schedule.plan import StepPlan

STAGES = ("schedule", "pack", "dispatch", "collect", "update")


class Stages:
    """A clock for each stage of the loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {stage: [0.0] for stage in STAGES}

    @contextmanager
    def time(self, stage: str, step: int = -1) -> Iterator[None]:
        """Add the block's time to the step at hand, or to the one before it (-2)."""
        start = time.perf_counter()
        yield
        self.seconds[stage][step] += time.perf_counter() - start

    def next_step(self) -> None:
        """The step at hand is done."""
        for values in self.seconds.values():
            values.append(0.0)

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds = {stage: [0.0] for stage in STAGES}

    def medians_ms(self) -> dict[str, float]:
        """Medians over the finished steps. Packing is part of the dispatch and is subtracted from it."""
        done = {stage: values[:-1] for stage, values in self.seconds.items()}
        done["dispatch"] = [a - b for a, b in zip(done["dispatch"], done["pack"], strict=True)]
        return {stage: statistics.median(values) * 1e3 for stage, values in done.items()}


class Loop:
    """`EngineCore.step`, taken apart so that every stage is timed."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.stages = Stages()
        self.last: Launched | None = None
        self._in_flight: Launched | None = None

    def step(self) -> StepPlan | None:
        """Dispatch a step and read back the tokens of the one before. Returns the plan, or None if there was none."""
        scheduler, runner, time_of = self.core.scheduler, self.core.runner, self.stages.time
        with time_of("schedule"):
            plan = scheduler.schedule()
        launched = None
        if plan is not None:
            with time_of("dispatch"):
                launched = runner.dispatch(plan)
            self.last = launched
        if self._in_flight is not None:
            with time_of("collect"):
                tokens = runner.collect(self._in_flight)
            with time_of("update"):
                scheduler.update(self._in_flight.plan, tokens)
        self._in_flight = launched
        self.stages.next_step()
        return plan

    def drain(self) -> None:
        """Read back the step that is in flight."""
        if self._in_flight is not None:
            with self.stages.time("collect", -2):
                tokens = self.core.runner.collect(self._in_flight)
            with self.stages.time("update", -2):
                self.core.scheduler.update(self._in_flight.plan, tokens)
            self._in_flight = None

    def back_to_back(self, count: int) -> tuple[float, float]:
        """Seconds a step of the last plan, dispatched again and again, and of that the host's alone.

        Doing a plan twice changes nothing: it writes the same keys and values to the same places.
        """
        assert self.last is not None
        runner, plan = self.core.runner, self.last.plan
        self._wait(runner.dispatch(plan))
        host: list[float] = []
        start = time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            launched = runner.dispatch(plan)
            host.append(time.perf_counter() - before)
        self._wait(launched)
        return (time.perf_counter() - start) / count, statistics.median(host)

    def _wait(self, launched: Launched) -> None:
        jax.block_until_ready(launched.output)


@contextmanager
def packing_timed(stages: Stages) -> Iterator[None]:
    """Time the two functions that pack a plan's arrays, within `Runner.dispatch`."""

    def timed(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with stages.time("pack"):
                return function(*args, **options)

        return call

    with (
        patch.object(runner_module, "pack_batch", timed(pack.pack_batch)),
        patch.object(pack.SlotSampling, "pack", timed(pack.SlotSampling.pack)),
    ):
        yield
