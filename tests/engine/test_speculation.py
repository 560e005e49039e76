"""Drafted tokens change no answer: what comes with them is what comes without, token by token."""

from typing import Any

import pytest

from jserve.config.speculation import SpeculativeConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams, TokenDelta
from jserve.schedule.drafts import Drafter
from tests.engine.world import COUNT, PAGE, PROMPTS, World
from tests.worlds import run

NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=4, prompt_lookup_min=1, prompt_lookup_max=3)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.4, "seed": 7},
    "filtered": {"temperature": 0.9, "seed": 3, "top_k": 4, "top_p": 0.9},
    "penalised": {"temperature": 0.0, "repetition_penalty": 1.8},
    "with logprobs": {"temperature": 0.0, "logprobs": 3},
}


def answers(core: EngineCore, names: list[str], params: SamplingParams) -> dict[str, tuple[list[int], list[str], int]]:
    """By request its tokens, why it ended and how many of its tokens came with logprobs. Checks every step."""
    prompts = {name: PROMPTS[name] for name in names}
    deltas = run(core, prompts, params, lambda step: core.scheduler.check())
    return {name: summary(parts) for name, parts in deltas.items()}


def summary(parts: list[TokenDelta]) -> tuple[list[int], list[str], int]:
    tokens = [token for part in parts for token in part.token_ids]
    reasons = [part.finish_reason for part in parts if part.finish_reason is not None]
    return tokens, [str(reason) for reason in reasons], sum(len(part.logprobs or []) for part in parts)


def drafting(world: World) -> EngineCore:
    return EngineCore(world.started, speculation=NGRAM)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_drafts(world: World, kind: str) -> None:
    """One, three, and as many as there are slots and more, where pages run out and rows wait."""
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, **KINDS[kind])
    names = list(PROMPTS)
    for batch in ([names[3]], names[4:7], names):
        assert answers(drafting(world), batch, params) == answers(world.core(), batch, params)


def test_drafts_are_accepted_and_save_steps(world: World) -> None:
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0)
    core, plain = drafting(world), world.core()
    assert answers(core, ["r1"], params) == answers(plain, ["r1"], params)
    stats = core.stats()
    assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    assert sum(stats.accepted_per_position) == stats.num_accepted_tokens
    assert stats.num_steps == plain.stats().num_steps - stats.num_accepted_tokens
    assert plain.stats().num_drafts == 0


def test_rows_with_masks_and_edits_beside_drafts_are_as_without(world: World) -> None:
    names = list(PROMPTS)[:8]
    plain = {"max_tokens": COUNT, "ignore_eos": True, "temperature": 0.0}
    odd = [{}, {"allowed_token_ids": [3, 4, 5, 9]}, {}, {"logit_bias": {5: 4.0}}, {"min_tokens": 4}]
    params = {name: SamplingParams(**plain | odd[place % len(odd)]) for place, name in enumerate(names)}

    def all_of(core: EngineCore) -> dict[str, Any]:
        for name in names:
            assert core.add(Request(name, PROMPTS[name], params[name])) is None
        deltas = run(core, {}, params[names[0]], lambda step: core.scheduler.check())
        return {name: summary(parts) for name, parts in deltas.items()}

    core = drafting(world)
    assert all_of(core) == all_of(world.core())
    assert core.stats().num_accepted_tokens > 0


def test_what_drafts_leave_in_the_prefix_cache_is_what_was_said(world: World) -> None:
    """Prompts that go on from answers of which many tokens were drafted, and drafts that were rejected in between."""
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0)
    core, plain = drafting(world), world.core()
    for name in ("r1", "r2", "r4"):
        first = answers(plain, [name], params)[name][0]
        assert answers(core, [name], params)[name][0] == first
        longer = {"longer": PROMPTS[name] + first + [5, 6]}
        deltas = run(core, longer, params, lambda step: core.scheduler.check())["longer"]
        assert summary(deltas) == summary(run(world.core(), longer, params)["longer"])
        assert deltas[0].num_cached_tokens >= (len(PROMPTS[name]) + COUNT - 1) // PAGE * PAGE
    assert core.stats().num_accepted_tokens > 0


def test_preemption_meets_drafts(world: World) -> None:
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0)
    core, met = drafting(world), []
    preempt = core.scheduler._preempt

    def watched(sequence: Any, *args: Any, **kwargs: Any) -> Any:
        met.append(sequence.drafted is not None and sequence.drafted.num_in_flight > 0)
        return preempt(sequence, *args, **kwargs)

    core.scheduler._preempt = watched  # type: ignore[method-assign]
    names = list(PROMPTS)
    assert answers(core, names, params) == answers(world.core(), names, params)
    assert met


def test_a_stop_token_within_a_draft_ends_the_answer_there(world: World) -> None:
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0)
    tokens = answers(world.core(), ["r1"], params)["r1"][0]
    for stop in sorted(set(tokens))[:3]:
        stopped = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0, stop_token_ids=[stop])
        assert answers(drafting(world), ["r1"], stopped) == answers(world.core(), ["r1"], stopped)


def test_an_abort_while_a_draft_is_in_flight_leaves_the_others_as_they_are(world: World) -> None:
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.0)
    names = list(PROMPTS)[:3]
    expected = answers(world.core(), names, params)
    for at in (5, 6, 8):
        core = drafting(world)

        def between(step: int, core: EngineCore = core, at: int = at) -> None:
            if step == at:
                core.abort([names[1]])
            core.scheduler.check()

        deltas = run(core, {name: PROMPTS[name] for name in names}, params, between)
        for name in (names[0], names[2]):
            assert summary(deltas[name]) == expected[name]
        aborted = summary(deltas[names[1]])[0]
        assert aborted == expected[names[1]][0][: len(aborted)]


def test_a_draft_that_is_accepted_though_unequal_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would notice it."""
    params = SamplingParams(max_tokens=COUNT, ignore_eos=True, temperature=0.9, seed=5)
    expected = answers(world.core(), ["r1"], params)
    accepts = Drafter.accepts

    def always(drafter: Drafter, chunk: Any, token: int) -> bool:
        known = chunk.sequence.token_ids
        if len(known) == chunk.start + 1:
            known[chunk.start] = chunk.draft_token
        return accepts(drafter, chunk, token)

    monkeypatch.setattr(Drafter, "accepts", always)
    assert answers(drafting(world), ["r1"], params) != expected
