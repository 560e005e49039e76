"""Grammars in the engine's core: on a tiny random model, whose choices are noise."""

import re
import threading
from typing import Any

import numpy as np
import pytest
from llguidance import LLParserLimits

from jserve.constrain import compiler
from jserve.constrain.masks import MaskMaker
from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams, ThinkingBudget
from tests.engine.constrained.world import (
    EOS,
    GRAMMARS,
    JSON_GRAMMAR,
    OTHER_EOS,
    VOCAB,
    World,
    check_empty,
    is_sentence,
    run_all,
)
from tests.worlds import greedy, reference_logits, run, tokens_of


def test_what_ends_with_stop_is_a_sentence_of_its_grammar_at_any_temperature(world: World) -> None:
    core = world.core()
    requests = {}
    for number in range(120):
        params = SamplingParams(
            temperature=1.0 + number % 3,
            seed=number,
            max_tokens=60,
            grammar=GRAMMARS[number % len(GRAMMARS)],
            min_tokens=(number % 5) * 4,
            ignore_eos=number % 7 == 0,
            frequency_penalty=0.5 * (number % 2),
            top_p=(1.0, 0.9)[number % 2],
            logprobs=(None, 2)[number % 11 == 0],
        )
        requests[str(number)] = (world.prompt("hello"), params)
    deltas = run_all(core, requests)
    ended = [name for name in requests if deltas[name][-1].finish_reason == "stop"]
    assert len(ended) > 90
    for name in ended:
        text = world.text(deltas[name])
        assert is_sentence(requests[name][1].grammar, text), (requests[name][1], text)
        assert tokens_of(deltas[name])[-1] in (EOS, OTHER_EOS)
    assert {deltas[name][-1].finish_reason for name in requests} <= {"stop", "length"}
    texts = {world.text(deltas[name]) for name in ended}
    assert len(texts) > 60, "the outputs are too alike to show anything"
    check_empty(core)


def test_preempted_request_with_a_grammar_resumes_with_the_same_tokens(world: World) -> None:
    prompt = world.prompt("The quick brown fox jumps over the lazy dog")
    params = {
        str(seed): SamplingParams(temperature=2.0, seed=seed, max_tokens=60, grammar="start: /[a-z ]{150}/")
        for seed in range(8)
    }
    alone = {name: tokens_of(run(world.core(), {name: prompt}, own)[name]) for name, own in params.items()}
    core = world.core()
    deltas = run_all(core, {name: (prompt, own) for name, own in params.items()})
    assert core.stats().num_preemptions > 0
    assert {name: tokens_of(actual) for name, actual in deltas.items()} == alone
    assert all(re.fullmatch("[a-z ]+", world.text(actual)) for actual in deltas.values())


def test_constrained_neighbours_change_nothing_for_others_and_cost_no_steps(world: World) -> None:
    core = world.core()
    requests = {f"plain {text}": (world.prompt(text), greedy(30)) for text in ("hello", "def fib", "x")}
    alone = {name: tokens_of(run(world.core(), {name: prompt}, own)[name]) for name, (prompt, own) in requests.items()}
    constrained = SamplingParams(temperature=1.0, seed=3, max_tokens=30, grammar="start: /[a-z]{90}/")
    core.grammars.compile(constrained.grammar).result()
    deltas = run_all(core, requests | {"grammar": (world.prompt("hello"), constrained)})
    assert {name: tokens_of(deltas[name]) for name in alone} == alone
    assert len(tokens_of(deltas["grammar"])) == 30
    # One step for all prompts, which gives the first token, one for each of 29 more, none extra.
    assert core.stats().num_steps == 30


def test_forward_of_the_next_step_is_dispatched_before_constrained_tokens_come_home(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, events = world.core(), []
    for name in ("dispatch", "collect", "sample"):
        original = getattr(core.runner, name)

        def recorded(*args: Any, name: str = name, original: Any = original) -> Any:
            events.append(name)
            return original(*args)

        monkeypatch.setattr(core.runner, name, recorded)
    params = greedy(4, grammar="start: /[a-z]{90}/")
    core.grammars.compile(params.grammar).result()
    run(core, {"a": world.prompt("hello")}, params)
    assert events == ["dispatch", "sample", *["dispatch", "collect", "sample"] * 3, "collect"]


def test_nothing_is_compiled_for_grammars_after_ready(world: World) -> None:
    core = world.core()
    requests = {}
    for number in range(20):
        fields: list[dict[str, Any]] = [
            {"grammar": GRAMMARS[number % len(GRAMMARS)]},
            {"bad_words": ((5, 6), (7,))},
            {"allowed_token_ids": (5, 6, 7)},
            {"thinking_budget": ThinkingBudget(3, (), (9,), is_open=True)},
            {"frequency_penalty": 1.0},
            {"logprobs": 3, "grammar": JSON_GRAMMAR},
            {},
        ]
        params = SamplingParams(temperature=float(number % 2), seed=1, max_tokens=12, **fields[number % len(fields)])
        requests[str(number)] = (world.prompt("hello"), params)
    with core.compiles.watch():
        run_all(core, requests)
    assert core.compiles.count == 0
    check_empty(core)


class HeldCompiles:
    """Grammars of a core that compile when the test says so."""

    def __init__(self, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        original = core.grammars._compile

        def held(grammar: str) -> Any:
            assert self.release.wait(60)
            return original(grammar)

        monkeypatch.setattr(core.grammars, "_compile", held)


def test_request_waits_for_its_grammar_outside_the_queue_and_nobody_waits_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = world.core()
    held = HeldCompiles(core, monkeypatch)
    assert core.add(Request("slow", world.prompt("hello"), SamplingParams(grammar=JSON_GRAMMAR, max_tokens=80))) is None
    deltas = {"plain": [], "slow": []}
    assert core.add(Request("plain", world.prompt("hello"), greedy(10))) is None
    while core.num_deferred == 0 or not core.scheduler.is_idle:
        for delta in core.step():
            deltas[delta.request_id].append(delta)
    assert tokens_of(deltas["plain"]) == world.plain("hello", 10)
    stats = core.stats()
    assert (stats.num_deferred, stats.num_waiting, stats.num_running) == (1, 0, 0)
    assert not core.is_idle
    held.release.set()
    actual = run(core, {}, greedy(1))["slow"]
    assert is_sentence(JSON_GRAMMAR, world.text(actual))
    check_empty(core)


def test_request_that_is_aborted_while_its_grammar_compiles_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = world.core()
    held = HeldCompiles(core, monkeypatch)
    request = Request("a", world.prompt("hello"), SamplingParams(grammar=JSON_GRAMMAR))
    core.add(request)
    refused = core.add(request)
    assert refused is not None
    assert "in use" in (refused.error or "")
    core.step()
    core.abort(["a"])
    assert core.is_idle
    check_empty(core)
    held.release.set()
    core.grammars.compile(JSON_GRAMMAR).result()
    assert core.is_idle
    assert core.step() == []


BROKEN = {
    "syntax": ("start: /[a", "the grammar does not compile"),
    "unknown rule": ("start: nothing", 'unknown name: "nothing"'),
    "json": ('{"grammars": [{"json_schema": {"type": "nonsense"}}]}', "the grammar does not compile"),
    "empty": (" ", "the grammar does not compile"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_grammar_that_does_not_compile_ends_its_request_alone(world: World, case: str) -> None:
    core, (grammar, message) = world.core(), BROKEN[case]
    requests = {
        "broken": (world.prompt("hello"), SamplingParams(grammar=grammar)),
        "plain": (world.prompt("hello"), greedy(10)),
        "good": (world.prompt("hello"), SamplingParams(seed=1, grammar=JSON_GRAMMAR, max_tokens=80)),
    }
    deltas = run_all(core, requests)
    (only,) = deltas["broken"]
    assert (only.finish_reason, only.token_ids) == ("error", [])
    assert message in (only.error or "")
    assert "\n" not in (only.error or "")
    assert tokens_of(deltas["plain"]) == world.plain("hello", 10)
    assert is_sentence(JSON_GRAMMAR, world.text(deltas["good"]))
    check_empty(core)


def test_grammar_that_fails_while_it_runs_ends_its_request_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar of exponential ambiguity meets llguidance's limit on one row of items after some tokens."""
    limits = LLParserLimits(verbose_errors=False, max_items_in_row=60)
    monkeypatch.setattr(compiler, "parser_limits", lambda: limits)
    core = world.core()
    requests = {
        "fails": (world.prompt("hello"), greedy(80, grammar='start: s\ns: "a" | s s | s s s')),
        "plain": (world.prompt("hello"), greedy(40)),
        "good": (world.prompt("hello"), SamplingParams(seed=1, grammar=JSON_GRAMMAR, max_tokens=80)),
    }
    deltas = run_all(core, requests)
    last = deltas["fails"][-1]
    assert last.finish_reason == "error"
    assert re.fullmatch(r"the grammar failed: .*max is 60.*", last.error or "")
    assert 1 < len(tokens_of(deltas["fails"])) < 80
    assert tokens_of(deltas["plain"]) == world.plain("hello", 40)
    assert is_sentence(JSON_GRAMMAR, world.text(deltas["good"]))
    check_empty(core)


@pytest.mark.parametrize("others", [0, 2])
def test_grammar_that_takes_too_long_for_a_token_ends_its_request_alone(world: World, others: int) -> None:
    """Its time grows with every token; beside others it is found out by taking turns."""
    core = world.core()
    core._masks = MaskMaker(VOCAB, slow_s=0.0005)
    requests = {"slow": (world.prompt("a"), greedy(115, grammar='start: s\ns: "a" | s s | s s s'))}
    for number in range(others):
        requests[f"good {number}"] = (world.prompt("x"), greedy(100, grammar="start: /[a-z]{150}/"))
    deltas = run_all(core, requests)
    last = deltas["slow"][-1]
    assert last.finish_reason == "error"
    assert re.fullmatch(r"the grammar took [0-9.]+ ms for one token, and 0.5 are allowed; .*", last.error or "")
    assert 2 < len(tokens_of(deltas["slow"])) < 115
    for number in range(others):
        assert deltas[f"good {number}"][-1].finish_reason == "length"
    check_empty(core)


def test_request_whose_constraints_leave_no_token_ends_alone_with_their_names(world: World) -> None:
    core = world.core()
    letters = tuple(world.prompt("b"))
    requests = {
        "stuck": (world.prompt("hello"), greedy(5, grammar='start: "bbba"', allowed_token_ids=letters)),
        "plain": (world.prompt("hello"), greedy(10)),
    }
    deltas = run_all(core, requests)
    last = deltas["stuck"][-1]
    assert last.finish_reason == "error"
    assert last.is_refusal
    assert "after 3 tokens no token is left" in (last.error or "")
    assert tokens_of(deltas["plain"]) == world.plain("hello", 10)
    check_empty(core)


def test_grammar_at_its_end_ends_the_request_though_it_asks_for_more(world: World) -> None:
    """min_tokens and ignore_eos cannot make a finished grammar go on, but they do where it may."""
    core, word = world.core(), 'start: "ab"'
    requests = {
        "min_tokens": (world.prompt("x"), SamplingParams(temperature=0, max_tokens=9, min_tokens=8, grammar=word)),
        "ignore_eos": (world.prompt("x"), SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, grammar=word)),
        "may go on": (
            world.prompt("x"),
            SamplingParams(seed=1, max_tokens=20, min_tokens=12, grammar="start: /[ab]*/"),
        ),
        "goes on": (
            world.prompt("x"),
            SamplingParams(seed=1, max_tokens=20, ignore_eos=True, grammar="start: /[ab]*/"),
        ),
    }
    deltas = run_all(core, requests)
    for name in ("min_tokens", "ignore_eos"):
        assert world.text(deltas[name]) == "ab"
        assert deltas[name][-1].finish_reason == "stop"
    assert len(tokens_of(deltas["may go on"])) > 12
    assert deltas["goes on"][-1].finish_reason == "length"


def test_stop_token_of_a_request_comes_exactly_where_the_grammar_may_end(world: World) -> None:
    """The comma is a stop token: inside the sentence it is forbidden, at its end it is allowed and wins."""
    (comma,) = world.prompt(",")
    params = SamplingParams(
        temperature=0,
        max_tokens=40,
        stop_token_ids=(comma,),
        logit_bias={comma: 100.0},
        grammar='start: /(a|,){4}b/ "x"*',
    )
    ends = run(world.core(), {"a": world.prompt("hello")}, params)["a"]
    assert (ends[-1].finish_reason, ends[-1].stop_reason) == ("stop", comma)
    assert world.text(ends) == "aaaab"


def test_logprobs_under_a_grammar_are_those_of_the_unmodified_logits(world: World) -> None:
    prompt = world.prompt("hello")
    deltas = run(world.core(), {"a": prompt}, greedy(6, grammar='start: "zqzqzq"', logprobs=1))["a"]
    tokens = tokens_of(deltas)
    logits = reference_logits(world.model, prompt + tokens)[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for index, delta in enumerate(deltas):
        assert delta.logprobs is not None
        assert delta.logprobs[0].logprob == pytest.approx(expected[index, tokens[index]], abs=1e-4)
        assert delta.logprobs[0].top_ids == [int(expected[index].argmax())]
    assert any(delta.logprobs[0].rank > 1 for delta in deltas if delta.logprobs)
