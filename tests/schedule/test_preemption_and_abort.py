"""Scheduler: sequences that lose their pages, to others or for good."""

from jserve.protocol import Request, SamplingParams
from jserve.schedule.plan import StepPlan, StepTokens
from jserve.schedule.scheduler import Scheduler
from tests.schedule.simulated_device import EOS, World


def _lengths(plan: StepPlan | None) -> dict[str, int]:
    assert plan is not None
    return {chunk.sequence.request.request_id: chunk.length for chunk in plan.chunks}


def _scheduler(**changes: int) -> Scheduler:
    sizes = {"num_pages": 16, "page_size": 2, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return Scheduler(
        **{"max_model_len": 32, **sizes, **changes},
        eos_token_ids=frozenset({EOS}),
        enable_prefix_caching=True,
    )


# Preemption


def _crowd(world: World, *, priorities: tuple[int, ...] = (0, 0)) -> None:
    """Sequences that start together but cannot grow to their ends together."""
    for number, priority in enumerate(priorities):
        prompt = [1 + number % 3] * 3
        world.add("abcdef"[number], prompt, priority=priority, max_tokens=7, ignore_eos=True)


def test_a_preempted_sequence_resumes_with_the_same_tokens() -> None:
    world = World(num_pages=7, page_size=2)
    _crowd(world)
    world.run()
    world.check_outcome()
    assert world.scheduler.stats().num_preemptions > 0
    assert world.deltas["b"][-1].num_preemptions > 0


def test_the_newest_sequence_is_preempted() -> None:
    world = World(num_pages=7, page_size=2)
    _crowd(world)
    world.run()
    assert world.deltas["a"][-1].num_preemptions == 0


def test_the_least_important_sequence_is_preempted_even_if_it_is_older() -> None:
    world = World(num_pages=7, page_size=2)
    _crowd(world, priorities=(1, 0))
    world.run()
    assert world.deltas["b"][-1].num_preemptions == 0
    assert world.deltas["a"][-1].num_preemptions > 0


def test_a_preempted_sequence_gives_up_pages_and_keeps_its_token_in_flight() -> None:
    world = World(num_pages=7, page_size=2)
    _crowd(world)
    while not world.scheduler.stats().num_preemptions:
        world.launch()
        if not world.scheduler.stats().num_preemptions and len(world.in_flight) > 1:
            world.collect()
    before = len(world.tokens("b"))
    world.scheduler.check()
    while world.in_flight:
        world.collect()
    assert len(world.tokens("b")) > before
    world.run()
    world.check_outcome()


def test_a_preempted_sequence_returns_before_those_that_wait_longer_in_the_queue() -> None:
    world = World(num_pages=7, page_size=2, max_num_seqs=2)
    _crowd(world)
    world.step()
    world.add("later", [1], max_tokens=1)
    while not world.scheduler.stats().num_preemptions:
        world.step()
    admitted = []
    while not world.scheduler.is_idle:
        if (plan := world.step()) is not None:
            admitted += [chunk.sequence.request.request_id for chunk in plan.chunks if chunk.is_first]
    assert admitted == ["b", "later"]


def test_a_preempted_sequence_that_ends_with_its_token_in_flight_does_not_return() -> None:
    scheduler = _scheduler(num_pages=4)
    for name, prompt in (("a", [1, 2]), ("b", [3])):
        scheduler.add(Request(name, prompt, SamplingParams(max_tokens=6)))
    plans = []
    while not scheduler.stats().num_preemptions:
        plan = scheduler.schedule()
        assert plan is not None
        plans.append(plan)
        if len(plans) > 1 and not scheduler.stats().num_preemptions:
            plan = plans.pop(0)
            scheduler.update(plan, StepTokens([5] * len(plan.chunks)))
    victim = next(chunk.sequence for chunk in plans[0].chunks if chunk.sequence.num_preemptions)
    tokens = [EOS if chunk.sequence is victim else 5 for chunk in plans[0].chunks]
    deltas = {delta.request_id: delta for delta in scheduler.update(plans[0], StepTokens(tokens))}
    assert deltas[victim.request.request_id].finish_reason == "stop"
    assert scheduler.stats().num_waiting == 0
    scheduler.check()


# Aborts


def test_an_abort_frees_pages_and_slot_within_the_call() -> None:
    world = World()
    world.add("a", [1, 2, 3], max_tokens=9, ignore_eos=True)
    world.step()
    assert world.scheduler.stats().num_pages_used == 2
    world.abort("a")
    stats = world.scheduler.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
    world.scheduler.check()
    world.collect()
    assert world.tokens("a") == []


def test_an_aborted_waiting_request_never_runs() -> None:
    world = World(max_num_seqs=1)
    for name in ("a", "b", "c"):
        world.add(name, [1, 2], max_tokens=2, ignore_eos=True)
    world.step()
    world.abort("b")
    assert world.scheduler.stats().num_waiting == 1
    world.run()
    world.check_outcome()
    assert world.tokens("b") == []


def test_unknown_and_repeated_aborts_are_ignored() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams()))
    scheduler.abort(["nobody", "a", "a"])
    assert scheduler.is_idle


def test_many_aborted_waiting_requests_are_not_kept() -> None:
    scheduler = _scheduler(max_num_seqs=1)
    for number in range(500):
        scheduler.add(Request(str(number), [1], SamplingParams()))
    scheduler.abort([str(number) for number in range(1, 500)])
    waiting = scheduler._sequences["0"].share.waiting
    assert max(len(waiting._by_rank), len(waiting._by_length)) < 150
    plan = scheduler.schedule()
    assert _lengths(plan) == {"0": 1}
