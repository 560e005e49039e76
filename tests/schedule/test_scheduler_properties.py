"""Whatever happens, in whatever order: pages add up, nothing gets stuck, and neighbours change no token."""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jserve.protocol import Pooling
from jserve.schedule.groups import Windows, pages_held
from tests.schedule.simulated_device import World

_HEADS = ([], [1, 2], [1, 2, 3, 1], [1, 2, 3, 1, 2, 2], [3, 3, 3, 3])
WINDOWS = ((None,), (None,), (4,), (None, 3), (None, 1, 1), (None, None, 6), (None, 5, 2), (7, 7))
"""Windows of cache groups: a model that sees everything, one with a window, and mixed ones."""
_prompts = st.builds(
    lambda head, tail: [*head, *tail] or [1],
    st.sampled_from(_HEADS),
    st.lists(st.integers(1, 3), max_size=7),
)


class AnyOrder(RuleBasedStateMachine):
    """Requests come, are aborted, and steps are dispatched and read back, in any order in any small world."""

    @initialize(
        num_pages=st.integers(4, 12),
        windows=st.sampled_from(WINDOWS),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 9),
        caching=st.sampled_from([True, True, False]),
        depth=st.sampled_from([1, 1, 0, 2]),
        step_sizes=st.sampled_from([(), (2, 4, 8), (3, 5, 9)]),
        num_snapshots=st.sampled_from([None, None, 0, 1, 2, 5]),
    )
    def begin(
        self,
        num_pages: int,
        windows: Windows,
        max_num_seqs: int,
        budget: int,
        caching: bool,
        depth: int,
        step_sizes: tuple[int, ...],
        num_snapshots: int | None,
    ) -> None:
        self.world = World(
            num_pages=num_pages + 2 * len(windows),
            windows=windows,
            max_num_seqs=max_num_seqs,
            budget=budget,
            max_model_len=20,
            caching=caching,
            depth=depth,
            step_sizes=lambda rows: step_sizes,
            num_snapshots=num_snapshots,
        )

    @rule(
        prompt=_prompts,
        max_tokens=st.sampled_from([0, 1, 2, 5, 9, 14, None]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
        pooling=st.sampled_from(["", "", "", "last", "mean"]),
        min_tokens=st.sampled_from([0, 0, 4]),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        salt=st.sampled_from(["", "", "a"]),
        tenant=st.sampled_from([0, 0, 1, 2]),
    )
    def add(
        self, prompt: list[int], priority: int, salt: str, pooling: Pooling, tenant: int, **sampling: object
    ) -> None:
        request_id = f"r{len(self.world.requests)}"
        self.world.add(request_id, prompt, priority=priority, salt=salt, pooling=pooling, tenant=tenant, **sampling)

    @precondition(lambda self: self.world.requests)
    @rule(choice=st.integers(0, 100))
    def abort(self, choice: int) -> None:
        self.world.abort(sorted(self.world.requests)[choice % len(self.world.requests)])

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()
            self.world.scheduler.check()

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def collect(self) -> None:
        self.world.collect()

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run()
            self.world.check_outcome()


AnyOrder.TestCase.settings = settings(max_examples=400, stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase


def _random_world(
    rng: random.Random, windows: Windows = (None,), spare: int = 0, num_snapshots: int | None = None
) -> World:
    """A world under pressure: more requests than slots or pages, arriving and aborted at any time."""
    tenants = rng.choice([(0,), (0, 0, 1, 2)])
    world = World(
        num_pages=pages_held(rng.randint(6, 14), windows, 2) + spare,
        windows=windows,
        max_num_seqs=rng.randint(2, 6),
        budget=rng.randint(2, 12),
        max_model_len=24,
        caching=rng.random() < 0.8,
        depth=rng.choice([0, 1, 1, 2]),
        num_snapshots=num_snapshots,
    )
    for number in range(rng.randint(4, 12)):
        tail = [rng.randint(1, 3) for _ in range(rng.randint(0, 6))]
        world.add(
            f"r{number}",
            [*rng.choice(_HEADS), *tail] or [1],
            priority=rng.choice([0, 0, -1]),
            tenant=rng.choice(tenants),
            max_tokens=rng.choice([0, 1, 6, 6, 12, 12, None, None]),
            prompt_logprobs=rng.choice([None, None, 0]),
            pooling=rng.choice(["", "", "", "", "", "", "last", "mean"]),
            ignore_eos=rng.random() < 0.5,
        )
        for _ in range(rng.choice([0, 0, 1, 3])):
            world.step()
            world.scheduler.check()
        if rng.random() < 0.1 and world.requests:
            world.abort(rng.choice(sorted(world.requests)))
    return world


def test_random_worlds_under_pressure_give_everyone_the_tokens_they_get_alone() -> None:
    preemptions = hits = stops = preempted_twice = 0
    for seed in range(1500):
        world = _random_world(random.Random(seed))
        world.run()
        world.check_outcome()
        stats = world.scheduler.stats()
        preemptions += stats.num_preemptions
        hits += stats.prefix_hits
        last = [deltas[-1] for deltas in world.deltas.values() if deltas]
        stops += sum(delta.finish_reason == "stop" for delta in last)
        preempted_twice += sum(delta.num_preemptions > 1 for delta in last)
    # The cases that are hard are reached, many times each.
    assert min(preemptions, hits, stops) > 1000
    assert preempted_twice > 50


def test_random_worlds_with_windows_give_everyone_the_tokens_they_get_alone() -> None:
    preemptions = hits = stops = 0
    for seed in range(500):
        rng = random.Random(seed)
        world = _random_world(rng, rng.choice(WINDOWS[2:]), spare=rng.randint(0, 6))
        world.run()
        world.check_outcome()
        stats = world.scheduler.stats()
        preemptions += stats.num_preemptions
        hits += stats.prefix_hits
        stops += sum(deltas[-1].finish_reason == "stop" for deltas in world.deltas.values() if deltas)
    assert min(10 * preemptions, hits, stops) > 1000


def test_random_worlds_with_states_give_everyone_the_tokens_they_get_alone() -> None:
    preemptions = hits = stops = 0
    for seed in range(500):
        rng = random.Random(seed)
        world = _random_world(rng, num_snapshots=rng.choice([0, 1, 2, 4, 12]))
        world.run()
        world.check_outcome()
        stats = world.scheduler.stats()
        preemptions += stats.num_preemptions
        hits += stats.prefix_hits
        stops += sum(deltas[-1].finish_reason == "stop" for deltas in world.deltas.values() if deltas)
    assert min(preemptions, hits, stops) > 300
