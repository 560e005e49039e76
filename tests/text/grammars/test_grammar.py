"""Regexes, choices, user grammars, structural tags and reasoning: what they let through, and what they refuse."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from jserve.errors import RequestError
from jserve.text.grammars.grammar import after_reasoning, json_rule, whole_grammar
from jserve.text.grammars.structured import StructuredOutput, grammar_of
from jserve.text.load import load_tokenizer
from tests.text.grammars.grammar_walk import Vocabulary

THINK = ("<think>", "</think>")
CALL = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
TAGS = {
    "structures": [
        {"begin": "<function=weather>", "schema": CALL, "end": "</function>"},
        {"begin": "<function=add>", "schema": {"type": "integer"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}


@pytest.fixture(scope="module")
def bytewise() -> LLTokenizer:
    return LLTokenizer("byte")


@pytest.fixture(scope="module")
def real(real_gguf: Path) -> Vocabulary:
    made = load_tokenizer(str(real_gguf))
    assert made.eos_token_id is not None
    return Vocabulary(LLTokenizer(made.backend.to_str(), n_vocab=made.num_ids, eos_token=[made.eos_token_id]))


def accepts(tokenizer: LLTokenizer, grammar: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


FORMS: list[tuple[StructuredOutput, str]] = [
    (StructuredOutput("regex", r"^\d{3}/[a-z]{2,4}$"), r"[0-9]{3}/[a-z]{2,4}"),
    (StructuredOutput("regex", r"(\+1 )?\(\d{3}\) \d{3}-\d{4}"), r"(\+1 )?\([0-9]{3}\) [0-9]{3}-[0-9]{4}"),
    (StructuredOutput("regex", "a\nb|\\$"), "a\nb|\\$"),
    (
        StructuredOutput("choice", ["yes", "no", "no, thanks", 'quo"te\\', "größer 👍"]),
        'yes|no(, thanks)?|quo"te\\\\|größer 👍',
    ),
    (StructuredOutput("grammar", 'start: "SELECT " NAME\nNAME: /[a-z]{1,9}/'), "SELECT [a-z]{1,9}"),
    (StructuredOutput("grammar", 'root ::= "a" [0-9]{1,3} tail?\ntail ::= "x" | "y"'), "a[0-9]{1,3}[xy]?"),
    (StructuredOutput("json", '{"type": "integer"}'), "-?[0-9]{1,19}"),
    (StructuredOutput("json", {"items": {"const": 1}, "maxItems": 3, "type": "array"}, disable_any_whitespace=True),
     r"\[(1(,1){0,2})?\]"),
    (StructuredOutput("json", {"const": [1, 2]}, whitespace_pattern="[ ]?"), r"\[ ?1 ?, ?2 ?\]"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "pattern"), FORMS, ids=lambda value: repr(value)[:60])
def test_walks_with_a_real_tokenizer_stay_within_the_form(
    spec: StructuredOutput, pattern: str, real: Vocabulary
) -> None:
    grammar = grammar_of(spec)
    for seed in range(8):
        walk = real.walk(grammar, seed)
        assert walk.is_finished
        assert re.fullmatch(pattern, walk.text), walk.text


def test_a_structural_tag_leaves_text_free_and_holds_what_follows_a_trigger(bytewise: LLTokenizer) -> None:
    grammar = grammar_of(StructuredOutput("structural_tag", TAGS))
    whole = 'Well, <function=weather>{"city": "Bonn"}</function> and <function=add>3</function> it is.'
    for text in ("", "Just text.", "a <b> c", whole):
        assert accepts(bytewise, grammar, text)
    for text in (
        "<function=drop>",
        '<function=weather>{"town"',
        "<function=add>x",
        "<function=add>3</function><function=z",
    ):
        assert not accepts(bytewise, grammar, text)


FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "const_string", "value": "ok"}, ["ok"], ["o", "okay"]),
    (
        {"type": "or", "elements": [{"type": "const_string", "value": "no"}, {"type": "regex", "pattern": "[0-9]{2}"}]},
        ["no", "12"],
        ["n1", "1"],
    ),
    ({"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"}, ["<t>a\nb</t>"],
     ["<t>a", "<t></t>x"]),
    (
        {"type": "sequence", "elements": [
            {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
            {"type": "json_schema", "json_schema": CALL},
        ]},
        ['<think>hm</think>{"city": "x"}'],
        ['{"city": "x"}', "<think>hm</think>x"],
    ),
    (
        {"type": "tags_with_separator", "separator": ", ", "tags": [
            {"begin": "<a>", "content": {"type": "regex", "pattern": "x+"}, "end": "</a>"}]},
        ["", "<a>x</a>", "<a>x</a>, <a>xx</a>"],
        ["<a>x</a><a>x</a>", "<a>x</a>, "],
    ),
    (
        {"type": "triggered_tags", "triggers": ["<a"], "at_least_one": True, "stop_after_first": True, "tags": [
            {"begin": "<a>", "content": {"type": "regex", "pattern": "x+"}, "end": ["</a>", "|"]}]},
        ["text <a>x</a>", "<a>xx|"],
        ["text", "<a>x</a> more"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("format", "good", "bad"), FORMATS, ids=lambda value: str(value)[:40])
def test_formats_of_structural_tags(
    bytewise: LLTokenizer, format: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    grammar = grammar_of(StructuredOutput("structural_tag", json.dumps({"type": "structural_tag", "format": format})))
    assert all(accepts(bytewise, grammar, text) for text in good)
    assert not any(accepts(bytewise, grammar, text) for text in bad)


def test_reasoning_may_come_first(bytewise: LLTokenizer) -> None:
    answer = whole_grammar(json_rule(CALL))
    closed, opened = after_reasoning(answer, *THINK), after_reasoning(answer, *THINK, is_open=True)
    said = '{"city": "Bonn"}'
    assert accepts(bytewise, closed, said)
    assert accepts(bytewise, closed, f"<think>\nwell {{ <b> </t\n</think>\n\n{said}")
    assert accepts(bytewise, opened, f"well\n</think>{said}")
    assert not accepts(bytewise, opened, said)
    assert not accepts(bytewise, closed, "<think>well</think>")
    assert not accepts(bytewise, closed, f"<think>a</think>b</think>{said}")
    assert not accepts(bytewise, closed, f"well {said}")


@pytest.mark.parametrize("spec", [FORMS[0][0], FORMS[3][0], FORMS[5][0], StructuredOutput("structural_tag", TAGS)])
def test_reasoning_between_special_tokens_comes_before_every_form(
    bytewise: LLTokenizer, spec: StructuredOutput
) -> None:
    begin, end = [token for token in range(256, bytewise.vocab_size) if bytewise.is_special_token(token)][:2]
    answers = {
        "regex": "123/ab",
        "choice": "no, thanks",
        "grammar": "a12x",
        "structural_tag": "<function=add>1</function>",
    }
    answer = list(answers[spec.kind].encode())
    thought = [begin, *b"let me <|tool|> think", end]
    for is_open, good in ((True, [*thought[1:], *answer]), (False, [*thought, *answer]), (False, answer)):
        matcher = LLMatcher(bytewise, after_reasoning(grammar_of(spec), begin, end, is_open=is_open), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        assert matcher.try_consume_tokens(good) == len(good)
        assert matcher.is_accepting()
    unfinished = LLMatcher(bytewise, after_reasoning(grammar_of(spec), begin, end, is_open=True), log_level=0)
    assert unfinished.consume_tokens(answer)
    assert not unfinished.is_accepting()


def test_a_json_rule_stands_inside_another_grammar(bytewise: LLTokenizer) -> None:
    grammar = f'start: "<call>" call "</call>" | "none"\ncall: {json_rule(CALL)}\n'
    assert accepts(bytewise, grammar, '<call>{\n  "city": "x"\n}</call>')
    assert accepts(bytewise, grammar, "none")
    assert not accepts(bytewise, grammar, "<call>{}</call>")


WRONG = [
    (StructuredOutput("structural_tag", {}), "needs `format`, or `structures` and `triggers`"),
    (StructuredOutput("structural_tag", {"structures": [], "triggers": ["<"]}), "`structures` of `structural_tag`"),
    (StructuredOutput("structural_tag", {**TAGS, "triggers": ["<tool"]}), "starts with none of the triggers"),
    (StructuredOutput("structural_tag", {"format": {"type": "grammar", "grammar": "x"}}), "'grammar' is not supported"),
    (StructuredOutput("structural_tag", {"format": {"type": "json_schema"}}), "needs `json_schema`"),
    (StructuredOutput("structural_tag", "[]"), "must be an object"),
    (StructuredOutput("choice", []), "at least one text"),
    (StructuredOutput("json", "{"), "not JSON"),
    (StructuredOutput("json", "[" * 100_000), "nested too deeply"),
    (StructuredOutput("json", [1]), "must be an object or a boolean, not list"),
    (StructuredOutput("grammar", "root ::= ("), "cannot be read"),
]


@pytest.mark.parametrize(("spec", "message"), WRONG, ids=lambda value: repr(value)[:50])
def test_what_makes_no_grammar_is_refused(spec: StructuredOutput, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        grammar_of(spec)
