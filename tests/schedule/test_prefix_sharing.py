"""Scheduler: what a request finds in the prefix cache, and what it leaves there."""

from jserve.schedule.plan import StepPlan
from tests.schedule.simulated_device import World


def _lengths(plan: StepPlan | None) -> dict[str, int]:
    assert plan is not None
    return {chunk.sequence.request.request_id: chunk.length for chunk in plan.chunks}


# Prefix cache


def test_a_cached_prompt_computes_its_last_token_only() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3, 1, 2], max_tokens=1)
    world.run()
    world.add("b", [1, 2, 3, 1, 2], max_tokens=1)
    assert _lengths(world.step()) == {"b": 1}


def test_the_last_token_is_always_computed_even_if_its_page_is_cached() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3, 1], max_tokens=1)
    world.run()
    world.add("b", [1, 2, 3, 1], max_tokens=1)
    assert _lengths(world.step()) == {"b": 2}
    world.run()
    world.check_outcome()


def test_choices_of_one_prompt_share_its_pages_within_one_step() -> None:
    world = World(page_size=2)
    for name in ("a", "b", "c"):
        world.add(name, [1, 2, 3, 1, 2], max_tokens=1)
    assert _lengths(world.step()) == {"a": 5, "b": 1, "c": 1}
    assert world.scheduler.stats().num_pages_used == 5
    world.run()
    world.check_outcome()


def test_an_answer_is_found_by_the_next_turn_of_its_conversation() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3], max_tokens=6, ignore_eos=True)
    world.run()
    turn = [1, 2, 3, *world.tokens("a")]
    world.add("b", [*turn, 1, 1], max_tokens=2)
    world.run()
    assert world.deltas["b"][0].num_cached_tokens == 8
    world.check_outcome()


def test_another_salt_finds_nothing() -> None:
    world = World(page_size=2)
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        world.add(name, [1, 2, 3, 1, 2], salt=salt, max_tokens=1)
        world.run()
    cached = [world.deltas[name][0].num_cached_tokens for name in ("a", "b", "c")]
    assert cached == [0, 0, 4]


def test_without_prefix_caching_everything_is_computed() -> None:
    world = World(caching=False)
    for name in ("a", "b"):
        world.add(name, [1, 2, 3, 1, 2], max_tokens=1)
        assert _lengths(world.step()) == {name: 5}
        world.run()
    stats = world.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (0, 0)


def test_a_request_that_does_not_fit_beside_another_fits_where_it_shares_its_prefix() -> None:
    world = World(num_pages=12, page_size=2, budget=4)
    world.add("a", [1] * 16, max_tokens=8, ignore_eos=True)
    world.add("b", [1] * 16, max_tokens=2, ignore_eos=True)
    assert [_lengths(world.step()) for _ in range(4)] == [{"a": 4}] * 4
    assert _lengths(world.step()) == {"a": 1, "b": 2}
    world.run()
    world.check_outcome()


def test_what_a_running_sequence_generated_can_be_shared_already() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3], max_tokens=12, ignore_eos=True)
    for _ in range(8):
        world.step()
    world.add("b", [1, 2, 3, *world.tokens("a")], max_tokens=2)
    world.step()
    assert world.scheduler.stats().num_running == 2
    assert world.scheduler.stats().prefix_hits == 8
    world.run()
    world.check_outcome()


def test_a_request_blocked_for_pages_is_admitted_when_they_are_freed() -> None:
    world = World(num_pages=8, page_size=2)
    world.add("a", [1] * 8, max_tokens=6, ignore_eos=True)
    world.add("b", [2] * 8, max_tokens=6, ignore_eos=True)
    world.step()
    world.step()
    assert world.scheduler.stats().num_waiting == 1
    world.abort("a")
    assert _lengths(world.step()) == {"b": 8}


def test_aborted_work_stays_in_the_prefix_cache() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3, 1, 2], max_tokens=9)
    world.step()
    world.abort("a")
    world.add("b", [1, 2, 3, 1, 2], max_tokens=2)
    assert _lengths(world.step()) == {"b": 1}
    world.run()
    world.check_outcome()
