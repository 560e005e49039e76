"""Grammars, budgets and bad words in the engine's core: on a tiny random model, whose choices are noise."""

import json
import re
import threading
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest

from jserve.config import EngineConfig
from jserve.constrain import compiler
from jserve.constrain.masks import MaskMaker
from jserve.engine import EngineCore
from jserve.errors import CheckpointError, RequestError
from jserve.llm import LLM
from jserve.protocol import RepetitionDetection, Request, SamplingParams, ThinkingBudget, TokenDelta
from jserve.runtime.start import Started, start_runner
from jserve.text.tokenizer import Tokenizer
from tests.text.tokenizer_maker import train_byte_level
from tests.worlds import greedy, make_model, reference, reference_logits, run, tokens_of

VOCAB = 650
"""Some more than the tokenizer has, and no multiple of 32."""
EOS, OTHER_EOS = 2, 0
PAGE = 4
PAGE_BYTES = 2 * 2 * 2 * PAGE * 8 * 4
NUM_PAGES = 60

SIZES: dict[str, Any] = {
    "dtype": "float32",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "max_model_len": 128,
    "page_size": PAGE,
    "kv_cache_memory_bytes": NUM_PAGES * PAGE_BYTES,
}

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
JSON_GRAMMAR = json.dumps({"grammars": [{"json_schema": {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}}]})
LIST_GRAMMAR = 'start: "[" item ("," item)* "]"\nitem: /[0-9]{1,3}/ | list\nlist: "[" item? "]"'
REGEXES = {
    "start: /(yes|no)( sir)?/": r"(yes|no)( sir)?",
    "start: /[a-c]{2,9}x/": r"[a-c]{2,9}x",
    "start: /([0-9]{1,3}\\.){3}[0-9]{1,3}/": r"([0-9]{1,3}\.){3}[0-9]{1,3}",
    "start: /.{0,5}é?/": r".{0,5}é?",
}


class World:
    """One started runner, and a tokenizer that it shares with its grammars."""

    def __init__(self, started: Started, tokenizer: Tokenizer) -> None:
        self.started = started
        self.tokenizer = tokenizer
        self.model = reference(tokenizer.source)
        self.plain = cache(lambda text, count: self.alone(text, greedy(count)))

    def core(self) -> EngineCore:
        return EngineCore(self.started)

    def prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def alone(self, text: str, params: SamplingParams) -> list[int]:
        return tokens_of(run(self.core(), {"alone": self.prompt(text)}, params)["alone"])

    def text(self, deltas: list[TokenDelta]) -> str:
        """Without the token that stopped it."""
        tokens = tokens_of(deltas)
        ends = deltas[-1].finish_reason == "stop"
        return self.tokenizer.decode(tokens[:-1] if ends else tokens, skip_special_tokens=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    folder = make_model(
        tmp_path_factory.mktemp("model"), "LlamaForCausalLM", vocab_size=VOCAB, eos_token_id=[EOS, OTHER_EOS]
    )
    backend = train_byte_level("gpt-2")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    config = EngineConfig(model=str(folder), compile_cache_dir=executables, **SIZES)
    return World(start_runner(config, lambda *_: None), Tokenizer(backend, source=folder))


def run_all(
    core: EngineCore, requests: dict[str, tuple[list[int], SamplingParams]], between: Any = None
) -> dict[str, list[TokenDelta]]:
    for name, (prompt, params) in requests.items():
        assert core.add(Request(name, prompt, params)) is None
    return run(core, {}, greedy(1), between)


def check_empty(core: EngineCore) -> None:
    core.scheduler.check()
    stats = core.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting, stats.num_deferred) == (0, 0, 0, 0)


def is_sentence(grammar: str, text: str) -> bool:
    if grammar in REGEXES:
        return re.fullmatch(REGEXES[grammar], text) is not None
    if grammar == LIST_GRAMMAR:
        return re.fullmatch(r"[0-9\[\],]+", text) is not None and text.startswith("[") and text.endswith("]")
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


GRAMMARS = [JSON_GRAMMAR, LIST_GRAMMAR, *REGEXES]


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
    assert {name: tokens_of(found) for name, found in deltas.items()} == alone
    assert all(re.fullmatch("[a-z ]+", world.text(found)) for found in deltas.values())


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
    found = run(core, {}, greedy(1))["slow"]
    assert is_sentence(JSON_GRAMMAR, world.text(found))
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
    original = compiler.LLParserLimits
    monkeypatch.setattr(compiler, "LLParserLimits", lambda **fields: original(max_items_in_row=60, **fields))
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


def test_bad_words_never_come_and_nothing_else_changes(world: World) -> None:
    likely = world.plain("hello", 12)
    assert len(set(likely[:4])) > 1
    word = next(tuple(likely[i : i + 3]) for i in range(9) if len(set(likely[i : i + 3])) > 1)
    core = world.core()
    requests = {
        "long": (world.prompt("hello"), greedy(40, bad_words=(word,))),
        "short": (world.prompt("hello"), greedy(40, bad_words=((likely[0],),))),
        "drawn": (
            world.prompt("hello"),
            SamplingParams(
                max_tokens=90, ignore_eos=True, bad_words=((5,), (6, 7), (8, 8)), allowed_token_ids=(5, 6, 7, 8)
            ),
        ),
    }
    deltas = {name: tokens_of(found) for name, found in run_all(core, requests).items()}
    start = next(i for i in range(10) if tuple(likely[i : i + 3]) == word)
    assert deltas["long"][: start + 2] == likely[: start + 2]
    assert deltas["long"][start + 2] != likely[start + 2]
    assert word not in list(zip(deltas["long"], deltas["long"][1:], deltas["long"][2:], strict=False))
    assert likely[0] not in deltas["short"]
    pairs = set(zip(deltas["drawn"], deltas["drawn"][1:], strict=False))
    assert pairs <= {(6, 6), (6, 8), (7, 6), (7, 7), (7, 8), (8, 6), (8, 7)}
    assert len(pairs) > 4


def test_only_allowed_tokens_come_with_and_without_min_tokens(world: World) -> None:
    core = world.core()
    requests = {
        "some": (world.prompt("hello"), SamplingParams(max_tokens=60, allowed_token_ids=(5, 9, EOS), min_tokens=20)),
        "only the end": (world.prompt("hello"), SamplingParams(max_tokens=5, allowed_token_ids=(EOS,), min_tokens=2)),
        "plain": (world.prompt("hello"), greedy(10)),
    }
    deltas = {name: tokens_of(found) for name, found in run_all(core, requests).items()}
    assert set(deltas["some"][:20]) == {5, 9}
    assert set(deltas["some"]) <= {5, 9, EOS}
    assert deltas["only the end"] == [EOS] * 3
    assert deltas["plain"] == world.plain("hello", 10)


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("end", ["</think>", "\n"])
def test_reasoning_ends_exactly_at_its_budget(world: World, size: int, end: str) -> None:
    closing = tuple(world.prompt(end))
    budget = ThinkingBudget(size, (), closing, is_open=True)
    core = world.core()
    plain = world.plain("hello", 7)
    requests = {
        "greedy": (world.prompt("hello"), greedy(30, thinking_budget=budget)),
        "more": (world.prompt("hello"), greedy(20, thinking_budget=ThinkingBudget(99, (), closing, is_open=True))),
        "never begun": (world.prompt("hello"), greedy(20, thinking_budget=ThinkingBudget(size, (599, 598), closing))),
    }
    deltas = {name: tokens_of(found) for name, found in run_all(core, requests).items()}
    assert deltas["greedy"][:size] == plain[:size]
    assert tuple(deltas["greedy"][size : size + len(closing)]) == closing
    assert deltas["more"] == deltas["never begun"] == world.plain("hello", 20)


def test_budget_works_under_a_grammar_that_covers_the_reasoning(world: World) -> None:
    """The end is forced as soon as the grammar takes it; a grammar that never does wins."""
    closing = tuple(world.prompt("</think>"))
    assert len(closing) > 2
    budget = ThinkingBudget(6, (), closing, is_open=True)
    thinks = 'start: /[a-z]{30,40}/ "</think>" /[0-9]{2}/ | /[a-z ]*/ "</think>" /[0-9]{2}/'
    core = world.core()
    requests = {
        "at once": (world.prompt("x"), SamplingParams(seed=1, max_tokens=60, grammar=thinks, thinking_budget=budget)),
        "never": (
            world.prompt("x"),
            SamplingParams(seed=1, max_tokens=60, grammar="start: /[a-z]{15}/", thinking_budget=budget),
        ),
        "later": (
            world.prompt("x"),
            SamplingParams(
                seed=1, max_tokens=60, grammar='start: /[a-z]{40}/ "</think>" /[0-9]{2}/', thinking_budget=budget
            ),
        ),
    }
    deltas = run_all(core, requests)
    assert tuple(tokens_of(deltas["at once"])[6 : 6 + len(closing)]) == closing
    assert re.fullmatch(r"[a-z ]+</think>[0-9]{2}", world.text(deltas["at once"]))
    assert re.fullmatch(r"[a-z]{15}", world.text(deltas["never"]))
    assert re.fullmatch(r"[a-z]{40}</think>[0-9]{2}", world.text(deltas["later"]))
    assert {found[-1].finish_reason for found in deltas.values()} == {"stop"}


def test_model_without_a_tokenizer_refuses_grammars_and_serves_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = world.core()

    def missing() -> str:
        raise CheckpointError("/secret/path: no tokenizer")

    monkeypatch.setattr(core.grammars, "_tokenizer_json", missing)
    requests = {
        "grammar": (world.prompt("hello"), SamplingParams(grammar=JSON_GRAMMAR)),
        "plain": (world.prompt("hello"), greedy(10)),
    }
    deltas = run_all(core, requests)
    assert deltas["grammar"][0].error == (
        "grammars cannot be used with this model: its tokenizer was refused (CheckpointError)"
    )
    assert tokens_of(deltas["plain"]) == world.plain("hello", 10)


def test_offline_api_honours_every_constraint(world: World, executables: str) -> None:
    llm = LLM(str(world.started.model), compile_cache_dir=executables, **SIZES)
    (letter,) = world.prompt("q")
    closing = tuple(world.prompt("\n"))
    params = {
        "grammar": SamplingParams(seed=1, max_tokens=60, grammar=JSON_GRAMMAR),
        "choices": SamplingParams(n=3, seed=2, max_tokens=60, grammar=JSON_GRAMMAR),
        "broken": SamplingParams(grammar="start: /[a"),
        "allowed": SamplingParams(max_tokens=5, allowed_token_ids=(letter,)),
        "budget": SamplingParams(seed=1, max_tokens=9, thinking_budget=ThinkingBudget(3, (), closing, is_open=True)),
        "circles": SamplingParams(
            max_tokens=50, allowed_token_ids=(letter,), repetition_detection=RepetitionDetection(2, 1, 4), min_tokens=6
        ),
    }
    outputs = llm.generate(["hello"] * len(params), list(params.values()), use_tqdm=False)
    found = {name: output.outputs for name, output in zip(params, outputs, strict=True)}
    for output in (*found["grammar"], *found["choices"]):
        assert output.finish_reason == "stop"
        assert is_sentence(JSON_GRAMMAR, output.text)
    assert len({output.text for output in found["choices"]}) == 3
    assert found["broken"][0].finish_reason == "error"
    assert "does not compile" in (found["broken"][0].error or "")
    assert found["allowed"][0].text == "qqqqq"
    assert tuple(found["budget"][0].token_ids[3 : 3 + len(closing)]) == closing
    circles = found["circles"][0]
    assert (circles.text, circles.finish_reason) == ("q" * 7, "repetition")
    assert llm.core.is_idle


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allowed_token_ids": (VOCAB,)}, f"token id {VOCAB} is out of the vocabulary"),
        ({"bad_words": ((3, -1),)}, "token id -1 is out of the vocabulary"),
        ({"thinking_budget": ThinkingBudget(3, (), (VOCAB + 1,))}, f"token id {VOCAB + 1} is out of the vocabulary"),
        ({"allowed_token_ids": (4, 5), "bad_words": ((4,), (5,))}, "forbids every token"),
    ],
)
def test_offline_api_refuses_tokens_that_do_not_exist(world: World, fields: dict[str, Any], text: str) -> None:
    llm = LLM.__new__(LLM)
    llm.core, llm.tokenizer = world.core(), world.tokenizer
    with pytest.raises(RequestError, match=text):
        llm.generate([[3, 4]], SamplingParams(**fields), use_tqdm=False)
