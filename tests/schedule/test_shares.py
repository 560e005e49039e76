"""Scheduler: what tenants get of each step, who passes whom, and that nobody waits for ever."""

import random
from collections import Counter

import pytest

from jserve.protocol import Request, SamplingParams
from jserve.schedule.plan import StepPlan, StepTokens
from jserve.schedule.scheduler import Scheduler

ANSWER = 7
FLOOD, LIGHT = 1, 2
"""Two tenants: one sends without end, the other now and then."""


class Bench:
    """A scheduler behind a device that answers at once, one step ahead as the engine's; a clock counts tokens."""

    def __init__(self, *, budget: int = 64, max_num_seqs: int = 8, num_pages: int = 4000, page_size: int = 16) -> None:
        self.scheduler = Scheduler(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=20_000,
            eos_token_ids=frozenset(),
            enable_prefix_caching=True,
        )
        self.num_steps = 0
        self.clock = 0
        self.served: Counter[int] = Counter()
        """Tokens computed, by tenant."""
        self.first_token: dict[str, tuple[int, int]] = {}
        """Steps and tokens computed when it was read back."""
        self.ended: dict[str, int] = {}
        """Tokens computed when the answer was complete."""
        self.gaps: list[int] = []
        """Tokens computed between two tokens of an answer."""
        self._last: dict[str, int] = {}
        self._in_flight: StepPlan | None = None
        self._num_added = 0

    def add(self, tenant: int, prompt: int, answer: int, *, priority: int = 0) -> str:
        """A request whose prompt begins like no other."""
        self._num_added += 1
        name = f"{tenant}/{self._num_added}"
        tokens = [1000 + self._num_added] * prompt
        params = SamplingParams(max_tokens=answer, ignore_eos=True)
        assert self.scheduler.add(Request(name, tokens, params, priority=priority, tenant=tenant)) is None
        return name

    def step(self) -> StepPlan | None:
        """Plan the next step, and read back the one before."""
        plan = self.scheduler.schedule()
        if (before := self._in_flight) is not None:
            self.num_steps += 1
            self.clock += before.num_tokens
            for delta in self.scheduler.update(before, StepTokens([ANSWER] * len(before.chunks))):
                name = delta.request_id
                self.first_token.setdefault(name, (self.num_steps, self.clock))
                if name in self._last:
                    self.gaps.append(self.clock - self._last[name])
                self._last[name] = self.clock
                if delta.finish_reason:
                    self.ended[name] = self.clock
        for chunk in plan.chunks if plan is not None else ():
            self.served[chunk.sequence.request.tenant] += chunk.length
        self._in_flight = plan
        return plan

    def until_first_token(self, name: str) -> None:
        for _ in range(10_000):
            if name in self.first_token:
                return
            self.step()
        raise AssertionError(f"{name} has no token after 10,000 steps")

    def run(self) -> None:
        """Until all have ended."""
        while not self.scheduler.is_idle or self._in_flight is not None:
            self.step()


def tokens_alone(prompt: int, **sizes: int) -> tuple[int, int]:
    """Steps and tokens to the first token of a prompt that has the engine for itself."""
    bench = Bench(**sizes)
    bench.until_first_token(bench.add(LIGHT, prompt, 1))
    return bench.num_steps, bench.clock


# Within one tenant


@pytest.mark.parametrize(("longs", "length"), [(4, 1024), (12, 2048)])
def test_a_short_request_behind_long_prompts_is_done_in_a_third_of_their_time(longs: int, length: int) -> None:
    """Strictly first come, first served, it took 0.89 of the time behind four and 0.98 behind twelve."""
    bench = Bench(budget=256, max_num_seqs=16)
    names = [bench.add(0, length, 8) for _ in range(longs)]
    short = bench.add(0, 2, 2)
    bench.run()
    assert bench.ended[short] < bench.clock / 10
    assert max(bench.ended[name] for name in names) <= longs * length + 200, "the long ones pay for it"


def test_a_short_request_that_comes_late_passes_all_the_same() -> None:
    bench = Bench(budget=256, max_num_seqs=16)
    for _ in range(12):
        bench.add(0, 2048, 8)
    while bench.clock < 12_000:
        bench.step()
    short = bench.add(0, 2, 2)
    before = bench.num_steps
    bench.run()
    assert bench.first_token[short][0] - before == 2, "the step in flight, and its own"


def test_the_oldest_prompt_is_slowed_down_to_half_at_most_however_many_shorter_ones_come() -> None:
    bench = Bench(budget=64, max_num_seqs=32)
    long = bench.add(0, 3200, 1)
    while long not in bench.first_token:
        for _ in range(4):
            bench.add(0, 20, 1)
        bench.step()
    assert bench.first_token[long][0] <= 2 * 3200 / 64 + 2


def test_the_oldest_prompt_is_not_passed_for_the_last_slot() -> None:
    bench = Bench(budget=64, max_num_seqs=1)
    running = bench.add(0, 10, 40)
    bench.step()
    long = bench.add(0, 200, 1)
    short = bench.add(0, 2, 1)
    bench.run()
    assert bench.ended[running] < bench.ended[long] < bench.ended[short]


def test_the_oldest_prompt_is_not_passed_while_it_lacks_pages() -> None:
    bench = Bench(budget=64, num_pages=20, page_size=16, max_num_seqs=8)
    bench.add(0, 100, 60)
    bench.step()
    large = bench.add(0, 200, 1)
    bench.step()
    for _ in range(5):
        bench.add(0, 16, 1)
    for _ in range(30):
        bench.step()
    assert bench.scheduler.stats().num_waiting == 6
    bench.run()
    assert large in bench.ended


def test_length_is_what_the_prefix_cache_leaves() -> None:
    """A conversation's next turn has a long prompt, of which little is to be computed."""
    bench = Bench(budget=64)
    bench.add(0, 512, 1)
    bench.run()
    bench.add(0, 2000, 1)
    bench.step()
    params = SamplingParams(max_tokens=1)
    bench.scheduler.add(Request("turn", [1001] * 512 + [5, 6, 7], params))
    before = bench.num_steps
    bench.run()
    assert bench.first_token["turn"][0] - before == 2


# Between tenants


def flood(bench: Bench, requests: int, prompt: int, answer: int, steps: int = 40) -> None:
    """Queue a flood and let it take all that it gets."""
    for _ in range(requests):
        bench.add(FLOOD, prompt, answer)
    for _ in range(steps):
        bench.step()


@pytest.mark.parametrize("prompt", [1, 20, 60, 100, 500, 2000])
@pytest.mark.parametrize(("flooding", "answer"), [(5, 400), (100, 1), (400, 100), (3000, 1), (30, 1000)])
def test_a_flood_at_most_doubles_the_time_to_another_tenants_first_token(
    prompt: int, flooding: int, answer: int
) -> None:
    """In steps where it needs few, in tokens computed where it needs more, beyond the step in flight when it comes."""
    bench = Bench()
    flood(bench, 60, flooding, answer)
    assert bench._in_flight is not None
    steps, clock = bench.num_steps, bench.clock + bench._in_flight.num_tokens
    bench.until_first_token(bench.add(LIGHT, prompt, 5))
    alone_steps, alone_tokens = tokens_alone(prompt)
    assert bench.num_steps - steps <= 2 * alone_steps or bench.clock - clock <= 2 * alone_tokens


def test_a_flood_of_short_prompts_does_not_pass_another_tenants_long_one() -> None:
    bench = Bench()
    long = bench.add(LIGHT, 3200, 1)
    while long not in bench.first_token:
        for _ in range(10):
            bench.add(FLOOD, 5, 1)
        bench.step()
    assert bench.clock <= 2 * 3200 + 2 * 64


@pytest.mark.parametrize("seed", range(5))
def test_tenants_that_want_more_than_there_is_get_the_same(seed: int) -> None:
    """Their sizes differ tenfold. Answers are counted by the page, and a step of prompts may be ahead."""
    rng = random.Random(seed)
    bench = Bench(max_num_seqs=12)
    sizes = {tenant: (rng.choice([5, 50, 500]), rng.choice([1, 30])) for tenant in (1, 2, 3)}
    for tenant, (prompt, answer) in sizes.items():
        for _ in range(30_000 // (prompt + answer)):
            bench.add(tenant, prompt, answer)
    for _ in range(20):
        bench.step()
    before = bench.served.copy()
    for _ in range(200):
        bench.step()
        bench.scheduler.check()
    served = [bench.served[tenant] - before[tenant] for tenant in sizes]
    assert max(served) - min(served) <= 2 * 64 + 12 * 16, f"{sizes} got {served}"


def test_a_tenant_gets_all_that_others_do_not_want() -> None:
    bench = Bench()
    for _ in range(100):
        bench.add(FLOOD, 200, 1)
    for _ in range(50):
        bench.add(LIGHT, 2, 1)
        plan = bench.step()
        assert plan is not None
        assert plan.num_tokens == 64


def test_nobody_saves_up_while_it_is_idle() -> None:
    """The light one has had nothing for 100 steps. It gets two steps ahead, then halves."""
    bench = Bench()
    for _ in range(100):
        bench.add(FLOOD, 500, 1)
    for _ in range(100):
        bench.step()
    for _ in range(20):
        bench.add(LIGHT, 500, 1)
    before = bench.served.copy()
    for _ in range(40):
        bench.step()
    assert abs((bench.served - before)[FLOOD] - (bench.served - before)[LIGHT]) <= 3 * 64


def test_what_one_had_is_not_forgotten_while_it_pauses() -> None:
    """Without that, whoever sends one short burst after the other would have all of every step."""
    bench = Bench(max_num_seqs=32)
    for _ in range(200):
        bench.add(LIGHT, 500, 1)
    for _ in range(20):
        bench.step()
    before = bench.served.copy()
    for _ in range(40):
        burst = [bench.add(FLOOD, 100, 1) for _ in range(3)]
        while not all(name in bench.ended for name in burst):
            bench.step()
        bench.step()
    got = bench.served - before
    assert got[LIGHT] >= got[FLOOD] - 2 * 64


def test_what_one_had_while_nobody_else_waited_is_not_held_against_it() -> None:
    bench = Bench(max_num_seqs=8)
    bench.add(LIGHT, 2, 4000)
    bench.add(FLOOD, 2, 2000)
    bench.add(FLOOD, 2, 2000)
    for _ in range(1000):
        bench.step()
    for tenant in (FLOOD, LIGHT):
        for _ in range(10):
            bench.add(tenant, 600, 1)
    before = bench.served.copy()
    for _ in range(60):
        bench.step()
    got = bench.served - before
    assert min(got[FLOOD], got[LIGHT]) > 0.4 * (got[FLOOD] + got[LIGHT])


def test_who_holds_all_slots_gives_one_to_a_tenant_that_has_none() -> None:
    bench = Bench(max_num_seqs=4)
    flood(bench, 10, 30, 500)
    running = bench.scheduler.stats()
    assert (running.num_running, running.num_waiting) == (4, 6)
    for _ in range(8):
        bench.add(LIGHT, 10, 200)
    for _ in range(20):
        bench.step()
        bench.scheduler.check()
    tenants = Counter(sequence.share.tenant for sequence in bench.scheduler._running.by_rank)
    assert tenants == {FLOOD: 2, LIGHT: 2}, "half of the slots each"
    assert bench.scheduler.stats().num_preemptions == 2
    bench.run()


def test_who_holds_most_pages_gives_some_back() -> None:
    bench = Bench(num_pages=40, max_num_seqs=16)
    flood(bench, 10, 120, 60, steps=12)
    steps = bench.num_steps
    light = bench.add(LIGHT, 60, 4)
    bench.until_first_token(light)
    assert bench.num_steps - steps <= 4, "one is in flight, and its prompt takes three beside answers"
    bench.run()


def test_growing_answers_take_pages_back_from_who_holds_most() -> None:
    """The flood is older. Its answers grow until the pages are gone; the light one keeps its few."""
    bench = Bench(num_pages=24, max_num_seqs=8)
    for _ in range(4):
        bench.add(FLOOD, 40, 200)
    for _ in range(6):
        bench.step()
    light = bench.add(LIGHT, 20, 100)
    bench.run()
    assert bench.scheduler.stats().num_preemptions > 0
    assert bench.ended[light] < 1000


def test_a_higher_priority_is_served_before_shares_and_a_lower_one_after() -> None:
    bench = Bench(budget=64)
    for _ in range(20):
        bench.add(FLOOD, 500, 1)
    for _ in range(5):
        bench.step()
    background = bench.add(LIGHT, 20, 1, priority=1)
    urgent = bench.add(FLOOD, 640, 1, priority=-1)
    before = bench.num_steps
    bench.run()
    assert bench.first_token[urgent][0] - before <= 12
    assert bench.first_token[background][1] > 20 * 500


def test_a_priority_is_no_way_around_ones_share() -> None:
    """Work of another priority counts by itself: having had much of the higher one takes nothing of the default's."""
    bench = Bench()
    for _ in range(40):
        bench.add(FLOOD, 300, 1, priority=-1)
    while bench.scheduler.stats().num_waiting > 1:
        bench.step()
    for tenant in (FLOOD, LIGHT):
        for _ in range(20):
            bench.add(tenant, 300, 1)
    for _ in range(20):
        bench.step()
    before = bench.served.copy()
    for _ in range(60):
        bench.step()
    got = bench.served - before
    assert abs(got[FLOOD] - got[LIGHT]) <= 2 * 64


# What stays


def test_beside_answers_a_step_takes_half_whoever_sends_the_prompts() -> None:
    bench = Bench(budget=64, max_num_seqs=16)
    rng = random.Random(3)
    for _ in range(60):
        bench.add(rng.choice([FLOOD, LIGHT, 3]), rng.choice([3, 40, 700]), rng.choice([1, 30]))
        bench.step()
    bench.run()
    assert len(bench.gaps) > 100
    assert max(bench.gaps) <= 64, "a preempted one aside, the gap is one step of half a budget, or of prompts alone"


def test_a_preempted_sequence_is_not_charged_twice() -> None:
    bench = Bench(max_num_seqs=2)
    flood(bench, 2, 300, 100, steps=30)
    share = bench.scheduler._sequences[f"{FLOOD}/1"].share
    bench.add(LIGHT, 4, 1)
    bench.run()
    assert bench.scheduler.stats().num_preemptions == 1
    assert share.served <= 2 * (300 + 100)


def test_shares_are_forgotten_when_nobody_is_left() -> None:
    bench = Bench()
    for tenant in range(1, 50):
        bench.add(tenant, 10, 2, priority=tenant % 3)
    bench.run()
    shares = bench.scheduler._shares
    assert (shares._shares, shares._served, shares._num_open) == ({}, {}, {})
