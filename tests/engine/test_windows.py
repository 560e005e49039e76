"""A model with windows in an engine whose pages would not do if windows gave nothing back, against transformers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from jserve.config import EngineConfig
from jserve.config.speculation import SpeculativeConfig
from jserve.engine.core import EngineCore
from jserve.runtime.start import Started, start_runner
from jserve.schedule.groups import pages_held
from tests.worlds import greedy, make_model, reference, reference_greedy, run, tokens_of

PAGE, WINDOW, NUM_PAGES = 4, 7, 80
PAGE_BYTES = 2 * 2 * PAGE * 16 * 4
"""Keys and values of one layer: two heads of 16 numbers in float32."""
LONG = [3 + 7 * n % 120 for n in range(121)]
OTHER = [9, 9, 8, 7, 9, 6]


@dataclass(frozen=True)
class World:
    started: Started
    model: Any

    def core(self) -> EngineCore:
        """With empty pages."""
        self.started.runner.reset()
        return EngineCore(self.started)

    def check(self, core: EngineCore, prompts: dict[str, list[int]], count: int) -> dict[str, int]:
        """All at once get the tokens of transformers. Returns how many of their tokens each found in the cache."""

        def between(step: int) -> None:
            if step % 8 == 0:
                core.scheduler.check()

        deltas = run(core, prompts, greedy(count), between)
        for name, prompt in prompts.items():
            assert tokens_of(deltas[name]) == reference_greedy(self.model, prompt, count), name
        core.scheduler.check()
        stats = core.stats()
        assert (stats.num_pages_used, stats.num_pages) == (0, NUM_PAGES)
        return {name: deltas[name][0].num_cached_tokens for name in prompts}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    """One of four layers sees everything, and a cache group has one layer."""
    fields = {"sliding_window": WINDOW, "sliding_window_pattern": 4, "num_hidden_layers": 4, "head_dim": 16}
    folder = make_model(tmp_path_factory.mktemp("model"), "Gemma3ForCausalLM", **fields)
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=16,
        page_size=PAGE,
        kv_cache_memory_bytes=NUM_PAGES * PAGE_BYTES,
        compile_cache_dir=executables,
    )
    started = start_runner(config, lambda *_: None, early=True)
    assert started.shape.num_pages == NUM_PAGES
    assert started.shape.windows == (None, WINDOW, WINDOW, WINDOW)
    return World(started, reference(folder))


def test_the_longest_sequence_is_served_though_all_its_pages_would_not_fit(world: World) -> None:
    """Fails where pages are given back late: 256 tokens of four groups are 256 pages. The prompt comes in chunks."""
    shape = world.started.shape
    assert shape.max_model_len == 256
    assert pages_held(256 // PAGE, shape.windows, PAGE) < NUM_PAGES < shape.num_groups * 256 // PAGE
    assert world.check(world.core(), {"long": LONG}, 256 - len(LONG)) == {"long": 0}


def test_a_prefix_whose_windows_were_evicted_is_a_shorter_hit_or_none(world: World) -> None:
    """Going on at the end finds all; in front of it there was no room to keep windows, until "branch" left its own."""
    core = world.core()
    prompts = {"long": LONG, "on": LONG + OTHER, "branch": LONG[:40] + OTHER, "further": LONG[:60] + OTHER}
    hits = {name: world.check(core, {name: prompt}, 8)[name] for name, prompt in prompts.items()}
    assert hits == {"long": 0, "on": 120, "branch": 0, "further": 40}


def test_preempted_sequences_with_windows_resume_with_the_same_tokens(world: World) -> None:
    core = world.core()
    prompts = {f"r{n}": LONG[n : 10 + 4 * n] for n in range(4)}
    world.check(core, prompts, 56)
    assert core.stats().num_preemptions > 0


def test_pages_that_are_given_back_go_to_others(world: World) -> None:
    """Two at once fit because the windows of each hold 3 pages of its 28."""
    core = world.core()
    prompts = {"a": LONG[:100], "b": list(np.roll(LONG[:100], 5))}
    world.check(core, prompts, 10)
    assert core.stats().num_preemptions == 0


def test_drafts_change_nothing_where_windows_give_pages_back(world: World) -> None:
    """Their rows stand at the edge of a window, and their pages may go with the step that rejects them."""
    world.started.runner.reset()
    ngram = SpeculativeConfig(method="ngram", num_speculative_tokens=4, prompt_lookup_min=1, prompt_lookup_max=3)
    core = EngineCore(world.started, speculation=ngram)
    for prompt in ([5, 6, 7, 8, 9] * 6, [3, 4] * 9, LONG[:30], OTHER):
        world.check(core, {"one": prompt}, 60)
    assert core.stats().num_draft_tokens > core.stats().num_accepted_tokens > 0
