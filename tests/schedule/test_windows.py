"""Cache groups with windows: what no token sees any more is free for others, and still a prefix while it is there."""

import random

import pytest

from jserve.schedule.groups import first_visible_page, longest_sequence, pages_held, window_pages
from jserve.schedule.scheduler import Scheduler
from tests.schedule.simulated_device import World

PROMPT = [1 + n % 3 for n in range(24)]


def cached(world: World, name: str) -> int:
    return world.deltas[name][0].num_cached_tokens


def run_measured(world: World) -> int:
    """Run to the end. Returns the most pages that were used at any time."""
    most = 0
    while not world.scheduler.is_idle:
        world.step()
        world.scheduler.check()
        most = max(most, world.scheduler.stats().num_pages_used)
    world.run()
    world.check_outcome()
    return most


@pytest.mark.parametrize("page_size", [1, 2, 4, 8])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 9])
def test_window_pages_are_the_most_that_a_page_of_tokens_and_what_it_sees_lie_in(window: int, page_size: int) -> None:
    def pages(start: int) -> int:
        """Pages that a token at the start of a page, and those after it on the page, see."""
        return start // page_size + 1 - first_visible_page(start, window, page_size)

    assert max(pages(start) for start in range(0, 100 * page_size, page_size)) == window_pages(window, page_size)


def test_the_longest_sequence_is_the_last_whose_pages_fit() -> None:
    assert pages_held(10, (None, 5, 5), 2) == 10 + 3 + 3
    assert longest_sequence(16, (None, 5, 5), 2, 1000) == 20
    assert longest_sequence(15, (None, 5, 5), 2, 1000) == 18
    assert longest_sequence(16, (None,), 2, 1000) == 32
    assert longest_sequence(6, (5, 5), 2, 1001) == 1001, "windows alone hold any length"
    assert longest_sequence(3, (5, 5), 2, 1000) == 2
    assert longest_sequence(1, (5, 5), 2, 1000) == 0


def test_an_answer_of_any_length_holds_the_pages_of_its_window() -> None:
    world = World(windows=(4,), num_pages=3, max_model_len=64)
    assert world.add("a", [1, 2, 3], max_tokens=50, ignore_eos=True) is None
    assert run_measured(world) == window_pages(4, 2) == 3
    assert len(world.tokens("a")) == 50


def test_groups_that_see_everything_keep_everything() -> None:
    world = World(windows=(None, 4, 4), num_pages=31 + 3 + 3, max_model_len=64)
    assert world.add("a", [1, 2, 3], max_tokens=60, ignore_eos=True) is None
    assert run_measured(world) == 31 + 3 + 3
    assert world.scheduler.stats().num_preemptions == 0


def test_a_request_that_could_never_finish_is_refused_with_the_tokens_that_could() -> None:
    world = World(windows=(None, 4, 4), num_pages=16, max_model_len=64)
    refused = world.add("a", PROMPT, max_tokens=9, ignore_eos=True)
    assert refused is not None
    assert "may grow to 33, but the KV cache holds 20" in str(refused.error)


def test_chunks_of_a_prompt_are_as_long_as_there_are_pages() -> None:
    """Five pages of what is seen and computed next, of seven; one is left for the answer to grow."""
    world = World(windows=(9,), num_pages=7, budget=16)
    world.add("a", [1 + n % 3 for n in range(30)], max_tokens=4, ignore_eos=True)
    plans = [plan for _ in range(6) if (plan := world.step())]
    assert [plan.num_tokens for plan in plans] == [12, 4, 4, 4, 4, 2]
    world.run()
    world.check_outcome()


def test_a_prompt_gives_its_window_back_in_the_step_after() -> None:
    world = World(windows=(3,), num_pages=32, budget=16)
    world.add("a", PROMPT, max_tokens=9, ignore_eos=True)
    used = []
    for _ in range(4):
        world.step()
        used.append(world.scheduler.stats().num_pages_used)
    assert used == [8, 5, 2, 2]


def test_a_prefix_is_found_where_the_window_before_its_end_is_there() -> None:
    world = World(windows=(None, 4), num_pages=64)
    world.add("a", PROMPT, max_tokens=1)
    world.run()
    for name, length in {"whole": 24, "part": 14}.items():
        world.add(name, [*PROMPT[:length], 3, 3, 3], max_tokens=2)
        world.run()
        assert cached(world, name) == length
    world.check_outcome()


def test_a_prefix_whose_window_was_evicted_is_found_further_in_front_or_not_at_all() -> None:
    """Computing the prompt leaves room for its last windows alone. Then one of 11 tokens leaves its own."""
    world = World(windows=(None, 4), num_pages=18, budget=4)
    hits = {}
    for name, prompt in {"a": PROMPT, "on": [*PROMPT, 3], "back": PROMPT[:11], "further": PROMPT[:16]}.items():
        world.add(name, prompt, max_tokens=1)
        world.run()
        hits[name] = cached(world, name)
    assert hits == {"a": 0, "on": 24, "back": 0, "further": 10}
    world.check_outcome()


def test_two_sequences_share_the_pages_of_a_window() -> None:
    world = World(windows=(6,), num_pages=32)
    world.add("a", PROMPT[:12], max_tokens=9, ignore_eos=True)
    world.step()
    world.add("b", PROMPT[:12], max_tokens=9, ignore_eos=True)
    world.step()
    assert world.scheduler.stats().num_pages_used < 2 * window_pages(6, 2)
    world.run()
    assert cached(world, "b") == 10
    world.check_outcome()


def test_prompts_that_wait_for_each_others_pages_all_reach_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tenants' long prompts are half computed, and the windows of the rest find no page."""
    num_stuck = 0
    is_stuck = Scheduler._is_stuck.fget  # type: ignore[attr-defined]

    def count(scheduler: Scheduler) -> bool:
        nonlocal num_stuck
        stuck: bool = is_stuck(scheduler)
        num_stuck += stuck
        return stuck

    monkeypatch.setattr(Scheduler, "_is_stuck", property(count))
    for seed in range(100):
        rng = random.Random(seed)
        windows = rng.choice([(9,), (None, 9), (7, 7), (15,)])
        world = World(
            num_pages=rng.randint(10, 18) * len(windows),
            windows=windows,
            budget=rng.choice([6, 12, 16]),
            max_model_len=80,
            depth=rng.choice([0, 1]),
        )
        for number in range(6):
            prompt = [rng.randint(1, 3) for _ in range(rng.choice([3, 20, 40]))]
            world.add(f"r{number}", prompt, tenant=rng.randint(0, 2), max_tokens=rng.choice([1, 6]))
            for _ in range(rng.choice([0, 1])):
                world.step()
                world.scheduler.check()
        world.run()
        world.check_outcome()
    assert num_stuck > 3
