"""The loop is one step ahead of the device and no more, also while nothing is sampled."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import pytest

from jserve.protocol import Request, SamplingParams
from jserve.runtime.runner import Launched
from jserve.schedule.plan import StepPlan
from tests.engine.world import World


@dataclass
class Watched:
    """What a step computes last, and whether it was waited for."""

    array: jax.Array
    is_over: bool = False

    def block_until_ready(self) -> "Watched":
        self.array.block_until_ready()
        self.is_over = True
        return self


def test_steps_of_a_long_prompt_are_not_dispatched_before_those_before_them_are_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They sample nothing, so nobody reads them; a short request that came then waited for them all, and the engine
    was called stalled: 100 s for 9,000 tokens on two cores.
    """
    core, dispatch = world.core(), world.started.runner.dispatch
    steps: list[Watched] = []

    def watched(plan: StepPlan) -> Launched:
        assert sum(not step.is_over for step in steps) <= 1
        launched = dispatch(plan)
        if launched.output is not None:
            return launched
        assert launched.end is not None
        steps.append(Watched(launched.end))
        end: Any = steps[-1]
        return replace(launched, end=end)

    monkeypatch.setattr(core.runner, "dispatch", watched)
    core.add(Request("long", [3 + number % 9 for number in range(60)], SamplingParams(max_tokens=1)))
    while not core.is_idle:
        core.step()
    assert len(steps) == 3
    assert all(step.is_over for step in steps)
