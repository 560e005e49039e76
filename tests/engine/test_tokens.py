"""The engine's core on a tiny real model: a request's tokens are its own, whatever happens around it."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from jserve.protocol import Request, SamplingParams
from jserve.runtime.program_keys import (
    InstallPages,
    Logprobs,
    LogprobsOfFew,
    ProgramKey,
    Sample,
    SampleFew,
)
from jserve.runtime.sampling import VARIANTS, Variant
from tests.engine.world import (
    COUNT,
    EDITS,
    EOS,
    PAGE,
    PROMPTS,
    VOCAB,
    World,
    check_empty,
    run_mixed,
)
from tests.worlds import (
    add_few,
    greedy,
    reference_greedy,
    reference_logits,
    run,
    start_engine,
    tokens_of,
)


@pytest.mark.parametrize("name", PROMPTS)
def test_alone_a_request_gets_the_tokens_of_transformers(world: World, name: str) -> None:
    deltas = run(world.core(), {name: PROMPTS[name]}, greedy(COUNT))[name]
    assert tokens_of(deltas) == world.greedy(name)
    assert [delta.finish_reason for delta in deltas] == [None] * (COUNT - 1) + ["length"]
    assert deltas[0].num_cached_tokens == 0


def test_in_a_full_batch_chunked_and_preempted_it_gets_the_same_tokens(world: World) -> None:
    core = world.core()
    deltas = run(core, PROMPTS, greedy(COUNT))
    for name in PROMPTS:
        assert tokens_of(deltas[name]) == world.greedy(name), name
    assert core.stats().num_preemptions > 0
    assert max(map(len, PROMPTS.values())) > core.shape.max_num_batched_tokens
    assert any(delta.num_preemptions for actual in deltas.values() for delta in actual)
    check_empty(core)


def test_with_prefix_hits_it_gets_the_same_tokens(world: World) -> None:
    core = world.core()
    for name, prompt in PROMPTS.items():
        deltas = {round: run(core, {name: prompt}, greedy(COUNT))[name] for round in ("first", "again")}
        for actual in deltas.values():
            assert tokens_of(actual) == world.greedy(name), name
        full = (len(prompt) - 1) // PAGE * PAGE
        assert deltas["again"][0].num_cached_tokens == full
    shared = [name for name in PROMPTS if len(PROMPTS[name]) > 21]
    assert core.stats().prefix_hits > sum((len(PROMPTS[name]) - 1) // PAGE * PAGE for name in shared)


def test_prefix_hit_with_more_pages_than_a_small_step_carries_gets_the_same_tokens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """41 cached tokens are ten pages, which one row of a decode step has no room for."""
    prompt = PROMPTS["r3"] + [5]
    expected = reference_greedy(world.model, prompt, 4)
    core, compiled = world.core(), world.started.runner.table.compiled
    calls: list[int] = []
    install = compiled[InstallPages()]

    def counted(*args: Any) -> Any:
        calls.append(1)
        return install(*args)

    monkeypatch.setitem(compiled, InstallPages(), counted)
    assert tokens_of(run(core, {"a": prompt}, greedy(4))["a"]) == expected
    assert not calls
    again = run(core, {"b": prompt}, greedy(4))["b"]
    assert again[0].num_cached_tokens == 40
    assert tokens_of(again) == expected
    assert calls


@pytest.mark.parametrize("seed", range(4))
def test_with_neighbours_that_come_and_are_aborted_it_gets_the_same_tokens(world: World, seed: int) -> None:
    rng, core = random.Random(seed), world.core()
    names = rng.sample(sorted(PROMPTS), len(PROMPTS))
    aborted: set[str] = set()
    waiting = list(names)

    def disturb(step: int) -> None:
        for name in [waiting.pop() for _ in range(min(len(waiting), rng.randrange(3)))]:
            assert core.add(Request(name, PROMPTS[name], greedy(COUNT))) is None
        if rng.random() < 0.2:
            chosen = rng.choice(names)
            if chosen not in waiting and chosen in core.scheduler._sequences:
                aborted.add(chosen)
                core.abort([chosen])
                core.scheduler.check()

    first = waiting.pop()
    deltas = run(core, {first: PROMPTS[first]}, greedy(COUNT), disturb)
    assert not waiting
    assert aborted
    for name in names:
        actual = tokens_of(deltas.get(name, []))
        assert actual == world.greedy(name)[: len(actual)], name
        assert len(actual) == COUNT or name in aborted
    check_empty(core)


def test_seeded_draws_are_the_same_whatever_the_batch(world: World) -> None:
    params = {
        name: SamplingParams(temperature=0.9, top_p=0.95, top_k=9, seed=number, max_tokens=COUNT, ignore_eos=True)
        for number, name in enumerate(PROMPTS)
    }
    alone = {name: tokens_of(run(world.core(), {name: PROMPTS[name]}, params[name])[name]) for name in PROMPTS}
    core = world.core()
    requests = {name: (PROMPTS[name], params[name]) for name in PROMPTS}
    # Neighbours that are greedy, penalised and ask for logprobs make the steps of other variants.
    requests |= {
        "greedy": (PROMPTS["r1"], greedy(COUNT)),
        "edits": (PROMPTS["r2"], greedy(COUNT, presence_penalty=1.0)),
        "logprobs": (PROMPTS["r2"], greedy(7, logprobs=2)),
    }
    together = run_mixed(core, requests)
    assert core.stats().num_preemptions > 0
    for name, tokens in alone.items():
        assert tokens_of(together[name]) == tokens, name
    assert tokens_of(together["greedy"]) == world.greedy("r1")
    assert len({tuple(tokens[:4]) for tokens in alone.values()}) > 6


@pytest.mark.parametrize("logprobs", [None, 20])
def test_penalised_and_biased_requests_get_what_the_definition_says_also_when_preempted(
    world: World, logprobs: int | None
) -> None:
    core = world.core()
    edits = dict(zip(PROMPTS, EDITS * 2, strict=True))
    requests = {name: (PROMPTS[name], greedy(COUNT, logprobs=logprobs, **fields)) for name, fields in edits.items()}
    deltas = run_mixed(core, requests)
    for name, (prompt, params) in requests.items():
        assert tokens_of(deltas[name]) == world.expected(prompt, params), edits[name]
    penalised = [name for name, fields in edits.items() if "frequency_penalty" in fields]
    assert any(deltas[name][-1].num_preemptions for name in penalised)
    plain = [name for name in PROMPTS if tokens_of(deltas[name]) == world.greedy(name)]
    assert len(plain) < len(PROMPTS) / 2, "the edits change too little to show anything"


def test_bias_ends_with_its_request(world: World) -> None:
    """Its slot goes to a plain request, next to a penalised one whose steps read the bias of every row."""
    core = world.core()
    forced = run(core, {"forced": PROMPTS["r1"]}, greedy(5, logit_bias={5: 100.0}))["forced"]
    assert tokens_of(forced) == [5] * 5
    penalised = greedy(COUNT, frequency_penalty=1.0)
    deltas = run_mixed(core, {"plain": (PROMPTS["r1"], greedy(COUNT)), "other": (PROMPTS["r2"], penalised)})
    assert tokens_of(deltas["plain"]) == world.greedy("r1")
    assert tokens_of(deltas["other"]) == world.expected(PROMPTS["r2"], penalised)


def test_penalties_forget_the_request_that_had_the_slot_before(world: World) -> None:
    core, params = world.core(), greedy(COUNT, repetition_penalty=1.7, presence_penalty=1.0)
    for name in ("r4", "r1", "r9"):
        assert tokens_of(run(core, {name: PROMPTS[name]}, params)[name]) == world.expected(PROMPTS[name], params)


@pytest.mark.parametrize("min_tokens", [0, 1, 4, 11, COUNT])
def test_stop_tokens_are_banned_until_min_tokens_have_come_and_end_it_after(world: World, min_tokens: int) -> None:
    """Every token that the model likes here is a stop token, so the end comes as soon as it may."""
    core = world.core()
    requests = {}
    for name in PROMPTS:
        likely = world.greedy(name)
        stops = tuple(sorted({token for token in likely if likely.count(token) > 2 or token == likely[0]}))
        params = SamplingParams(
            temperature=0.0, max_tokens=COUNT, min_tokens=min_tokens, stop_token_ids=stops, ignore_eos=True
        )
        requests[name] = (PROMPTS[name], params)
    deltas = run_mixed(core, requests)
    for name, (prompt, params) in requests.items():
        expected = world.expected(prompt, params)
        assert tokens_of(deltas[name]) == expected, name
        last = deltas[name][-1]
        if expected[-1] in params.stop_token_ids:
            assert (last.finish_reason, last.stop_reason) == ("stop", expected[-1])
            assert len(expected) > min_tokens
        else:
            assert (last.finish_reason, last.stop_reason) == ("length", None)
            assert len(expected) == COUNT
        assert not set(expected[:min_tokens]) & set(params.stop_token_ids)
    assert min_tokens == COUNT or any(len(tokens_of(actual)) < COUNT for actual in deltas.values())


def test_end_of_sequence_ends_it_unless_ignored(world: World) -> None:
    core = world.core()
    bias = {EOS: 100.0}
    params = SamplingParams(temperature=0.0, max_tokens=5, logit_bias=bias)
    requests = {"ends": (PROMPTS["r1"], params), "goes on": (PROMPTS["r1"], greedy(5, logit_bias=bias))}
    deltas = run_mixed(core, requests)
    assert tokens_of(deltas["ends"]) == [EOS]
    assert (deltas["ends"][-1].finish_reason, deltas["ends"][-1].stop_reason) == ("stop", None)
    assert tokens_of(deltas["goes on"]) == [EOS] * 5
    check_empty(core)


def test_logprobs_are_the_whole_distribution_of_a_small_vocabulary(world: World) -> None:
    deltas = run(world.core(), {"a": PROMPTS["r2"]}, greedy(8, logprobs=20, presence_penalty=2.0))["a"]
    tokens = tokens_of(deltas)
    logits = reference_logits(world.model, PROMPTS["r2"] + tokens)[len(PROMPTS["r2"]) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for delta, row in zip(deltas, expected, strict=True):
        assert delta.logprobs is not None
        (actual,) = delta.logprobs
        assert sorted(actual.top_ids) == list(range(VOCAB))
        np.testing.assert_allclose(actual.top_logprobs, row[actual.top_ids], atol=1e-4)
        assert actual.top_logprobs == sorted(actual.top_logprobs, reverse=True)
        assert actual.top_ids[actual.rank - 1] == delta.token_ids[0]


def test_only_those_that_ask_get_logprobs(world: World) -> None:
    requested = {"none": None, "own": 0, "three": 3}
    requests = {name: (PROMPTS["r2"], greedy(4, logprobs=count)) for name, count in requested.items()}
    deltas = run_mixed(world.core(), requests)
    assert all(delta.logprobs is None for delta in deltas["none"])
    for name, count in (("own", 0), ("three", 3)):
        actual = [logprobs for delta in deltas[name] for logprobs in delta.logprobs or []]
        assert [len(logprobs.top_ids) for logprobs in actual] == [count] * 4


def test_rows_with_penalties_and_logprobs_are_done_apart_from_their_neighbours(world: World, executables: str) -> None:
    """Up to six of up to sixteen rows are edited: by the sampler of four rows, and never by that of all."""
    core = start_engine(world.started.model, executables, max_num_seqs=16, max_num_batched_tokens=32)
    runner = core.runner
    add_few(runner)
    used: Counter[ProgramKey] = Counter()

    def watched(key: ProgramKey, program: Any) -> Any:
        def call(*args: Any) -> Any:
            used[key] += 1
            return program(*args)

        return call

    for key, program in list(runner.table.compiled.items()):
        runner.table.put(key, watched(key, program))
    penalised = greedy(12, frequency_penalty=1.0, logprobs=2)
    requests = {
        f"{name} {copy}": (PROMPTS[name], penalised if (number + copy) % 3 == 0 else greedy(12))
        for number, name in enumerate(sorted(PROMPTS)[:8])
        for copy in range(2)
    }
    deltas = run_mixed(core, requests)
    of_few = used[SampleFew(16)]
    assert of_few == used[LogprobsOfFew(16)] > used[Sample(16, Variant())], "two calls a step with five or more"
    assert not {Sample(16, VARIANTS[-1]), Logprobs(16)} & set(used)
    for name, (prompt, params) in requests.items():
        assert tokens_of(deltas[name]) == world.expected(prompt, params, 12), name
        assert [len(delta.logprobs or []) for delta in deltas[name]] == [int(params is penalised)] * 12


def test_abort_frees_pages_at_once(world: World) -> None:
    core = world.core()
    names = ["r4", "r5", "r6", "r0"]
    for name in names:
        core.add(Request(name, PROMPTS[name], greedy(COUNT)))
    for _ in range(6):
        core.step()
    assert core.stats().num_pages_used > 10
    core.abort(names)
    core.step()
    check_empty(core)
    assert core.is_idle
    assert tokens_of(run(core, {"r4": PROMPTS["r4"]}, greedy(COUNT))["r4"]) == world.greedy("r4")
