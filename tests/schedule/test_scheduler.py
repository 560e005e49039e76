"""Scheduler: what a step holds, in which order, how sequences end, and what is refused."""

import pytest

from jserve.protocol import Request, SamplingParams, TokenLogprobs
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


def _feed(scheduler: Scheduler, *outputs: int) -> list[tuple[list[int], str | None, int | None]]:
    """Run one sequence whose device samples these tokens; what each delta says."""
    said = []
    for token in outputs:
        plan = scheduler.schedule()
        if plan is None:
            break
        for delta in scheduler.update(plan, StepTokens([token])):
            said.append((delta.token_ids, delta.finish_reason, delta.stop_reason))
    return said


# What a step holds


def test_a_prompt_is_computed_whole_and_then_one_token_a_step() -> None:
    world = World()
    world.add("a", [1, 2, 3], max_tokens=3, ignore_eos=True)
    assert [_lengths(world.step()) for _ in range(3)] == [{"a": 3}, {"a": 1}, {"a": 1}]
    assert world.step() is None


def test_a_long_prompt_is_chunked_to_the_budget_and_samples_at_its_end_only() -> None:
    world = World(budget=4)
    world.add("a", [1] * 10, max_tokens=1)
    chunks = [plan.chunks[0] for _ in range(3) if (plan := world.step())]
    assert [(chunk.start, chunk.length, chunk.samples) for chunk in chunks] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
    ]
    assert [chunk.is_first for chunk in chunks] == [True, False, False]


def test_decodes_go_first_and_a_long_prompt_never_stalls_them() -> None:
    world = World(budget=4)
    world.add("a", [1, 2], max_tokens=20, ignore_eos=True)
    world.step()
    world.add("long", [3] * 12, max_tokens=2)
    for _ in range(4):
        plan = world.step()
        assert list(_lengths(plan).items()) == [("a", 1), ("long", 3)]


def test_a_prompt_alone_gets_whole_steps_and_beside_answers_half() -> None:
    world = World(num_pages=200, budget=32, max_num_seqs=2, max_model_len=120)
    world.add("long", [3] * 80, max_tokens=9, ignore_eos=True)
    assert _lengths(world.step()) == {"long": 32}
    world.step()
    world.add("a", [1] * 2, max_tokens=20, ignore_eos=True)
    assert [_lengths(world.step()) for _ in range(2)] == [{"long": 16, "a": 2}, {"long": 1, "a": 1}]
    world = World(num_pages=200, budget=32, max_num_seqs=2, max_model_len=120)
    world.add("a", [1] * 2, max_tokens=20, ignore_eos=True)
    world.step()
    world.add("long", [3] * 80, max_tokens=9, ignore_eos=True)
    assert [_lengths(world.step()) for _ in range(2)] == [{"a": 1, "long": 15}] * 2


def test_however_many_answers_run_a_prompt_gets_on() -> None:
    world = World(num_pages=200, budget=8, max_num_seqs=8, max_model_len=64)
    for name in "abcdefg":
        world.add(name, [1, 2], salt=name, max_tokens=40, ignore_eos=True)
    for _ in range(4):
        world.step()
    world.add("long", [3] * 20, max_tokens=2)
    assert _lengths(world.step()) == dict.fromkeys([*"abcdefg", "long"], 1)


def test_several_prompts_share_what_the_decodes_leave() -> None:
    world = World(budget=8)
    world.add("a", [1, 2], max_tokens=20, ignore_eos=True)
    world.step()
    for name in ("b", "c", "d"):
        world.add(name, [3, 2, 1], salt=name, max_tokens=2)
    assert _lengths(world.step()) == {"a": 1, "b": 3, "c": 3, "d": 1}


def test_an_older_prompt_is_finished_before_a_newer_one_that_is_no_shorter() -> None:
    world = World(budget=4)
    world.add("old", [1] * 6, max_tokens=2, ignore_eos=True)
    world.add("new", [2] * 6, max_tokens=2)
    assert [_lengths(world.step()) for _ in range(3)] == [
        {"old": 4},
        {"old": 2, "new": 2},
        {"old": 1, "new": 3},
    ]


def test_no_more_sequences_run_than_there_are_slots() -> None:
    world = World(max_num_seqs=2)
    for name in ("a", "b", "c"):
        world.add(name, [1, 2], max_tokens=2, ignore_eos=True)
    assert _lengths(world.step()).keys() == {"a", "b"}
    stats = world.scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (2, 1)


def test_a_step_is_a_decode_step_only_when_all_chunks_have_length_one() -> None:
    world = World()
    world.add("a", [1, 2], max_tokens=9, ignore_eos=True)
    plans = [world.step(), world.step()]
    world.add("b", [3, 3], max_tokens=9)
    plans.append(world.step())
    assert [plan.is_decode for plan in plans if plan] == [False, True, False]


def test_page_updates_of_all_chunks_make_up_the_page_table() -> None:
    world = World()
    world.add("a", [1, 2, 3], max_tokens=6, ignore_eos=True)
    chunks = [plan.chunks[0] for _ in range(6) if (plan := world.step())]
    runs = [run for chunk in chunks for run in chunk.page_updates]
    assert [(run.group, run.first, len(run.pages)) for run in runs] == [(0, 0, 2), (0, 2, 1), (0, 3, 1)]


def test_the_last_token_has_no_page_because_it_is_never_fed_back() -> None:
    world = World(num_pages=2, page_size=2)
    assert world.add("a", [1, 2, 3], max_tokens=2, ignore_eos=True) is None
    world.run()
    assert len(world.tokens("a")) == 2


def test_a_step_ahead_takes_its_token_from_the_device() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1, 2], SamplingParams(max_tokens=3)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    chunk = second.chunks[0]
    assert (chunk.start, chunk.length, chunk.output_index) == (2, 1, 1)
    assert len(chunk.sequence.token_ids) == 2
    assert chunk.sequence.num_pending == 2


def test_nothing_is_planned_beyond_the_last_allowed_token() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1, 2], SamplingParams(max_tokens=2)))
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is not None
    assert scheduler.schedule() is None
    assert scheduler.has_unfinished


# How a sequence ends


def test_end_of_sequence_stops_with_its_token_included() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams(max_tokens=9)))
    assert _feed(scheduler, 5, EOS, 7) == [([5], None, None), ([EOS], "stop", None)]
    assert scheduler.is_idle


def test_ignored_end_of_sequence_goes_on_to_the_length() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams(max_tokens=3, ignore_eos=True)))
    assert _feed(scheduler, EOS, EOS, EOS) == [
        ([EOS], None, None),
        ([EOS], None, None),
        ([EOS], "length", None),
    ]


def test_a_stop_token_id_stops_and_is_named() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams(max_tokens=9, stop_token_ids=(7,))))
    assert _feed(scheduler, 5, 7) == [([5], None, None), ([7], "stop", 7)]


def test_an_ignored_end_of_sequence_token_can_still_be_a_stop_token_id() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=(EOS,))))
    assert _feed(scheduler, EOS) == [([EOS], "stop", EOS)]


def test_nothing_stops_before_min_tokens() -> None:
    scheduler = _scheduler()
    sampling = SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=(7,))
    scheduler.add(Request("a", [1], sampling))
    assert _feed(scheduler, EOS, 7, 7) == [([EOS], None, None), ([7], None, None), ([7], "stop", 7)]


def test_max_tokens_ends_with_length_even_at_the_first_token() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1, 2], SamplingParams(max_tokens=1)))
    assert _feed(scheduler, 5, 6) == [([5], "length", None)]


def test_the_context_ends_what_max_tokens_does_not() -> None:
    scheduler = _scheduler(max_model_len=4)
    scheduler.add(Request("a", [1, 2], SamplingParams(max_tokens=None)))
    scheduler_said = _feed(scheduler, 5, 6, 7)
    assert scheduler_said == [([5], None, None), ([6], "length", None)]


def test_without_max_tokens_the_cache_ends_what_the_context_does_not() -> None:
    world = World(num_pages=3, page_size=2, max_model_len=64)
    world.add("a", [1, 2], max_tokens=None, ignore_eos=True)
    world.run()
    assert len(world.tokens("a")) == 5


def test_a_finished_sequence_gives_its_pages_back_at_once_and_its_extra_token_is_dropped() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1, 2], SamplingParams(max_tokens=9)))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None
    assert second is not None
    assert scheduler.update(first, StepTokens([EOS]))[0].finish_reason == "stop"
    assert scheduler.stats().num_pages_used == 0
    assert scheduler.update(second, StepTokens([5])) == []


def test_first_and_last_deltas_carry_what_is_said_once() -> None:
    world = World()
    world.add("a", [1, 2, 3], max_tokens=3, ignore_eos=True)
    world.run()
    world.add("b", [1, 2, 3], max_tokens=3, ignore_eos=True)
    world.run()
    first, middle, last = world.deltas["b"]
    assert (first.num_cached_tokens, middle.num_cached_tokens, last.num_cached_tokens) == (2, 0, 0)
    assert first.scheduled_at > 0
    assert middle.scheduled_at == last.scheduled_at == 0
    assert (first.finish_reason, middle.finish_reason, last.finish_reason) == (None, None, "length")


def test_log_probabilities_go_with_their_own_token() -> None:
    scheduler = _scheduler()
    for name in ("a", "b"):
        scheduler.add(Request(name, [1], SamplingParams(max_tokens=3)))
    logprob = TokenLogprobs(-0.5, 1, [], [])
    plans = [scheduler.schedule() for _ in range(2)]
    for plan in plans:
        assert plan is not None
        deltas = scheduler.update(plan, StepTokens([5, 6], [None, logprob]))
        assert [(delta.request_id, delta.logprobs) for delta in deltas] == [("a", None), ("b", [logprob])]


def test_tokens_that_do_not_fit_their_plan_are_an_error() -> None:
    scheduler = _scheduler()
    scheduler.add(Request("a", [1], SamplingParams()))
    plan = scheduler.schedule()
    assert plan is not None
    with pytest.raises(ValueError, match="2 tokens were read back for 1 chunks"):
        scheduler.update(plan, StepTokens([5, 6]))


# Refusals


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [
        ([], 4, "the prompt is empty"),
        ([1] * 33, 4, "prompt has 33 tokens but max_model_len is 32; shorten it or raise --max-model-len"),
        ([1] * 32, 4, "leaves no room for an answer"),
        ([1] * 20, 12, "prompt has 20 tokens and may grow to 32, but the KV cache holds 20"),
        ([1] * 21, None, "prompt has 21 tokens and may grow to 22, but the KV cache holds 20"),
        ([1], -1, "max_tokens is -1 but must not be negative"),
    ],
)
def test_a_request_that_can_never_run_gets_an_error_that_says_why(
    prompt: list[int], max_tokens: int | None, says: str
) -> None:
    scheduler = _scheduler(num_pages=10)
    delta = scheduler.add(Request("a", prompt, SamplingParams(max_tokens=max_tokens)))
    assert delta is not None
    assert (delta.request_id, delta.token_ids, delta.finish_reason) == ("a", [], "error")
    assert delta.error is not None
    assert says in delta.error
    assert scheduler.is_idle


def test_a_request_that_just_fits_is_accepted() -> None:
    scheduler = _scheduler(num_pages=10)
    assert scheduler.add(Request("a", [1] * 20, SamplingParams(max_tokens=1))) is None
    assert scheduler.add(Request("b", [1] * 20, SamplingParams(max_tokens=None))) is None
    assert scheduler.add(Request("c", [1] * 11, SamplingParams(max_tokens=10))) is None


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    scheduler = _scheduler()
    request = Request("a", [1], SamplingParams(max_tokens=1))
    assert scheduler.add(request) is None
    refused = scheduler.add(request)
    assert refused is not None
    assert "is in use" in (refused.error or "")
    scheduler.abort(["a"])
    assert scheduler.add(request) is None


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        _scheduler(max_num_seqs=0)


# Order


def test_lower_priority_numbers_are_admitted_first_and_equal_ones_in_order() -> None:
    world = World(max_num_seqs=1)
    for name, priority in (("late", 1), ("first", 0), ("second", 0), ("urgent", -1)):
        world.add(name, [1, 2], priority=priority, max_tokens=1)
    order = []
    while not world.scheduler.is_idle:
        if (plan := world.step()) is not None:
            order += _lengths(plan)
    assert order == ["urgent", "first", "second", "late"]


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_pages() -> None:
    world = World(num_pages=8, page_size=2)
    world.add("a", [1] * 8, max_tokens=6, ignore_eos=True)
    world.add("large", [2] * 8, max_tokens=6, ignore_eos=True)
    assert _lengths(world.step()) == {"a": 8}
    world.add("small", [3], max_tokens=1)
    world.step()
    assert world.scheduler.stats().num_waiting == 2
    world.run()
    world.check_outcome()


def test_admission_leaves_running_sequences_the_pages_they_will_soon_need() -> None:
    world = World(num_pages=4, page_size=2)
    world.add("a", [1, 2], max_tokens=4, ignore_eos=True)
    world.add("b", [3, 3, 3], max_tokens=4, ignore_eos=True)
    world.run()
    world.check_outcome()
    assert world.scheduler.stats().num_preemptions == 0


# Numbers


def test_stats_count_what_happened() -> None:
    world = World(page_size=2)
    world.add("a", [1, 2, 3, 1, 2], max_tokens=2, ignore_eos=True)
    world.run()
    world.add("b", [1, 2, 3, 1, 3], max_tokens=3, ignore_eos=True)
    world.step()
    stats = world.scheduler.stats(num_steps=7, padded_tokens=8)
    assert (stats.prefix_queries, stats.prefix_hits) == (10, 4)
    assert stats.prompt_tokens_computed == 5 + 1
    assert (stats.step_tokens, stats.num_steps, stats.padded_tokens) == (1, 7, 8)
    assert (stats.num_pages, stats.num_pages_used) == (64, 3)
