"""Layers that keep a state: whoever shares steps, slots and copies of states gets the tokens of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Request
from jserve.runtime import step
from jserve.runtime.runner import Runner
from jserve.runtime.start import Started
from tests.models.hybrid_cases import HYBRIDS
from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_shared, tokens_of

PAGE, NUM_PAGES = 4, 40
COUNT = 12
LONG = [3 + 7 * n % 90 for n in range(61)]


@dataclass(frozen=True)
class World:
    started: Started
    model: Any

    def core(self) -> EngineCore:
        """With empty pages, but whatever was left in the states."""
        return EngineCore(self.started)

    def check(self, core: EngineCore, prompts: dict[str, list[int]], count: int = COUNT) -> dict[str, int]:
        """All at once get the tokens of transformers. Returns how many of their tokens each had in the cache."""
        deltas = run(core, prompts, greedy(count))
        for name, prompt in prompts.items():
            tokens = tokens_of(deltas[name])
            assert tokens == reference_greedy(self.model, prompt, count, guess=tokens), name
        core.scheduler.check()
        return {name: deltas[name][0].num_cached_tokens for name in prompts}


IN_DEFAULT_RUN = {"lfm2", "qwen3 next"}
FAMILIES = [pytest.param(name, marks=() if name in IN_DEFAULT_RUN else pytest.mark.slow) for name in HYBRIDS]


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    architecture, fields = HYBRIDS[request.param]
    folder = make_model(tmp_path_factory.mktemp("model"), architecture, **fields)
    return started_world(folder, executables)


def started_world(folder: Path, executables: str) -> World:
    sizes = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": PAGE}
    config = EngineConfig(model=str(folder), kv_cache_memory_bytes=1 << 20, compile_cache_dir=executables, **sizes)
    started = start_shared(config, early=True)
    assert started.shape.num_pages >= NUM_PAGES
    return World(replace(started, shape=replace(started.shape, num_pages=NUM_PAGES)), reference(folder))


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_prompts_of_every_length_cut_anywhere_beside_others(world: World) -> None:
    """Budgets of 16 tokens, or of 8 beside answers, shared by four: chunks end at all kinds of places."""
    core = world.core()
    for first in range(1, 41, 4):
        prompts = {str(length): LONG[first : first + length] for length in range(first, first + 4)}
        world.check(core, prompts, 3)


def test_a_slot_that_another_left_starts_from_zeros(world: World) -> None:
    core = world.core()
    world.check(core, {"a": LONG[:30], "b": LONG[5:20], "c": LONG[7:9], "d": LONG[9:33]})
    world.check(core, {"e": [9], "f": LONG[40:47], "g": [8, 7], "h": LONG[41:60]})


def test_an_aborted_prompt_leaves_nothing_behind(world: World) -> None:
    core = world.core()
    core.add(Request("gone", LONG, greedy(COUNT)))
    core.step()
    core.step()
    core.abort(["gone"])
    assert world.check(core, {"next": LONG[3:20]}) == {"next": 0}


def test_preempted_sequences_resume_with_the_same_tokens(world: World) -> None:
    """Four of 25 tokens that grow to 60 have 60 pages of 40 together."""
    core = world.core()
    world.check(core, {str(n): LONG[n : n + 25] for n in range(4)}, 35)
    assert core.stats().num_preemptions > 0


def test_a_cached_prefix_gives_the_tokens_of_a_computed_one(world: World) -> None:
    """At the end of the last full page of a prompt, and behind its answer; a prompt that branches off within finds
    what the one before it that branched there left.
    """
    core = world.core()
    assert world.check(core, {"first": LONG[:30]}) == {"first": 0}
    assert world.check(core, {"again": LONG[:30]}) == {"again": 28}
    # Its own: where two tokens are as good as equal, transformers may choose the other one.
    answer = tokens_of(run(core, {"once more": LONG[:30]}, greedy(COUNT))["once more"])
    assert world.check(core, {"next turn": LONG[:30] + answer + [5, 6]}) == {"next turn": 40}
    assert world.check(core, {"branch": [*LONG[:18], 1, 2, 3]}) == {"branch": 0}
    assert world.check(core, {"second branch": [*LONG[:18], 4, 4]}) == {"second branch": 16}
    stats = core.stats()
    assert stats.prefix_hits == 28 + 28 + 40 + 16


def no_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = Runner.dispatch
    monkeypatch.setattr(Runner, "dispatch", lambda self, plan: dispatch(self, replace(plan, restores=())))


def no_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = Runner.dispatch
    monkeypatch.setattr(Runner, "dispatch", lambda self, plan: dispatch(self, replace(plan, saves=())))


@pytest.mark.parametrize("bug", [no_restores, no_saves])
def test_a_state_that_is_not_copied_is_seen(world: World, bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core = world.core()
    world.check(core, {"other": LONG[20:], "first": LONG[:30]})
    bug(monkeypatch)
    world.check(core, {"fill": LONG[11:50], "more": LONG[13:52]})
    with pytest.raises(AssertionError, match=r"again|next turn|branch"):
        test_a_cached_prefix_gives_the_tokens_of_a_computed_one(world)


def test_a_state_that_does_not_start_from_zeros_is_seen(
    tmp_path: Path, fresh_caches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, fields = next(iter(HYBRIDS.values()))
    folder = make_model(tmp_path / "model", architecture, **fields)
    state_rows = step._state_rows

    def stale(*args: Any) -> Any:
        rows = state_rows(*args)
        return replace(rows, is_fresh=np.zeros(rows.is_fresh.shape, bool))

    monkeypatch.setattr(step, "_state_rows", stale)
    world = started_world(folder, str(tmp_path / "programs"))
    with pytest.raises(AssertionError):
        test_a_slot_that_another_left_starts_from_zeros(world)
