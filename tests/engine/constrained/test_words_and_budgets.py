"""Bad words, allowed tokens and thinking budgets in an engine, and all constraints offline."""

import re
from typing import Any

import pytest

from jserve.constrain.compiler import GrammarTokenizer
from jserve.errors import CheckpointError, RequestError
from jserve.llm import LLM
from jserve.protocol import RepetitionDetection, SamplingParams, ThinkingBudget
from tests.engine.constrained.world import (
    EOS,
    JSON_GRAMMAR,
    SIZES,
    VOCAB,
    World,
    is_sentence,
    run_all,
)
from tests.worlds import greedy, tokens_of


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
    deltas = {name: tokens_of(actual) for name, actual in run_all(core, requests).items()}
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
    deltas = {name: tokens_of(actual) for name, actual in run_all(core, requests).items()}
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
    deltas = {name: tokens_of(actual) for name, actual in run_all(core, requests).items()}
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
    assert {actual[-1].finish_reason for actual in deltas.values()} == {"stop"}


def test_model_without_a_tokenizer_refuses_grammars_and_serves_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = world.core()

    def missing() -> GrammarTokenizer:
        raise CheckpointError("/secret/path: no tokenizer")

    monkeypatch.setattr(core.grammars, "_load_tokenizer", missing)
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
    actual = {name: output.outputs for name, output in zip(params, outputs, strict=True)}
    for output in (*actual["grammar"], *actual["choices"]):
        assert output.finish_reason == "stop"
        assert is_sentence(JSON_GRAMMAR, output.text)
    assert len({output.text for output in actual["choices"]}) == 3
    assert actual["broken"][0].finish_reason == "error"
    assert "does not compile" in (actual["broken"][0].error or "")
    assert actual["allowed"][0].text == "qqqqq"
    assert tuple(actual["budget"][0].token_ids[3 : 3 + len(closing)]) == closing
    circles = actual["circles"][0]
    assert (circles.text, circles.finish_reason) == ("q" * 7, "repetition")
    assert llm.core.is_idle


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allowed_token_ids": (VOCAB,)}, f"token id {VOCAB}, which is out of vocabulary"),
        ({"bad_words": ((3, -1),)}, "token id -1, which is out of vocabulary"),
        ({"thinking_budget": ThinkingBudget(3, (), (VOCAB + 1,))}, f"token id {VOCAB + 1}, which is out of vocabulary"),
        ({"allowed_token_ids": (4, 5), "bad_words": ((4,), (5,))}, "forbids every token"),
    ],
)
def test_offline_api_refuses_tokens_that_do_not_exist(world: World, fields: dict[str, Any], text: str) -> None:
    llm = LLM.__new__(LLM)
    llm.core, llm.tokenizer, llm.started = world.core(), world.tokenizer, world.started
    with pytest.raises(RequestError, match=text):
        llm.generate([[3, 4]], SamplingParams(**fields), use_tqdm=False)
