"""Every format: what its messages mean, however they are cut, and what becomes of those that are damaged."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve.text.output.draft import short_call_id
from jserve.text.output.reasoning import Thinking, reasoning_named
from jserve.text.tools.registry import FORMATS
from tests.text.tools.messages import (
    F1,
    MALFORMED,
    WELL_FORMED,
    B,
    Case,
    Meaning,
    cut,
    meaning_of,
    parser_of,
    pieces_of,
)

THINK = reasoning_named("qwen3")
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


def ids(case: Case) -> str:
    return f"{case.format}: {case.text[:30]}"


@pytest.mark.parametrize("case", WELL_FORMED, ids=ids)
def test_message_means_what_the_model_meant(case: Case) -> None:
    assert meaning_of(pieces_of(parser_of(case.format), [case.text])) == case.meaning


@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_what_is_no_call_comes_back_as_content(name: str, text: str) -> None:
    assert meaning_of(pieces_of(parser_of(name), [text])) == Meaning(text)
    assert meaning_of(pieces_of(parser_of(name), text)) == Meaning(text)


def test_every_format_is_among_the_messages() -> None:
    unseen = {known.name for known in FORMATS} - {case.format for case in WELL_FORMED}
    assert unseen == {"mistral_args"}  # reads what mistral reads


@given(case=st.sampled_from(WELL_FORMED), places=PLACES)
@settings(max_examples=400)
def test_cuts_do_not_change_the_message(case: Case, places: list[int]) -> None:
    assert meaning_of(pieces_of(parser_of(case.format), cut(case.text, places))) == case.meaning


@given(case=st.sampled_from(WELL_FORMED))
@settings(max_examples=60)
def test_one_character_at_a_time_does_not_change_the_message(case: Case) -> None:
    assert meaning_of(pieces_of(parser_of(case.format), case.text)) == case.meaning


ALPHABETS = {
    known.name: [
        *known.markers, "{", "}", "[", "]", "(", ")", '"', "'", ":", ",", ";", "=", "\\", "\n", " ", "f", "name",
        "arguments", '{"name": "f", "arguments": ', '{"name": "f", "parameters": {', "f(a=", "call:f{", "1",
        "é", "null", "to=functions.f",
    ]
    for known in FORMATS
}  # fmt: skip


@given(data=st.data(), name=st.sampled_from(sorted(ALPHABETS)), places=PLACES)
@settings(max_examples=600)
def test_cuts_do_not_change_any_text(data: st.DataObject, name: str, places: list[int]) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(ALPHABETS[name]), max_size=25)))
    whole = meaning_of(pieces_of(parser_of(name, THINK), [text]))
    assert meaning_of(pieces_of(parser_of(name, THINK), cut(text, places))) == whole
    assert meaning_of(pieces_of(parser_of(name, THINK), text)) == whole


@pytest.mark.parametrize("case", [case for case in WELL_FORMED if case.calls], ids=ids)
def test_arguments_are_streamed_as_they_come_and_are_json(case: Case) -> None:
    pieces = pieces_of(parser_of(case.format), case.text)
    deltas = [delta for piece in pieces for delta in piece.tool_calls]
    for index, (name, arguments) in enumerate(case.calls):
        mine = [delta for delta in deltas if delta.index == index]
        assert mine[0].name == name
        assert mine[0].id is not None
        assert mine[0].id.startswith("chatcmpl-tool-")
        assert all(delta.id is None and delta.name is None for delta in mine[1:])
        json.loads(arguments)
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)


def test_a_long_string_is_not_held_back() -> None:
    parser = parser_of("hermes")
    parser.push('<tool_call>{"name": "f", "arguments": {"s": "')
    assert parser.push("some words").tool_calls[0].arguments == "some words"


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "', '"}}</tool_call>'),
        ("qwen3_coder", "<function=f><parameter=s>", "</parameter></function>"),
        ("pythonic", "[f(s='", "')]"),
        ("gemma4", '<|tool_call>call:f{s:<|"|>', '<|"|>}<tool_call|>'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"s": "', '"}'),
    ],
)
def test_a_token_costs_the_same_however_long_the_text(name: str, begin: str, end: str) -> None:
    parser = parser_of(name)
    parser.push(begin)
    times = []
    for _ in range(2):
        start = time.thread_time()
        for _ in range(25_000):
            parser.push("word")
        times.append(time.thread_time() - start)
    parser.push(end)
    assert times[1] < 3 * times[0], times


def test_arguments_that_are_no_json_are_given_as_they_are() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call> then'
    assert meaning_of(pieces_of(parser_of("hermes"), [text])) == Meaning(" then".strip(), (("f", '{"a": oops}}'),))


@pytest.mark.parametrize("case", [case for case in WELL_FORMED if case.calls], ids=ids)
def test_a_call_that_is_cut_off_never_looks_complete(case: Case) -> None:
    for length in range(len(case.text)):
        meaning = meaning_of(pieces_of(parser_of(case.format), [case.text[:length]]))
        for (name, arguments), (whole_name, whole) in zip(meaning.calls, case.calls, strict=False):
            assert name == whole_name
            if arguments not in (whole, "{}"):
                with pytest.raises(ValueError):  # noqa: PT011 (whatever json says)
                    json.loads(arguments)


@pytest.mark.parametrize("case", [case for case in WELL_FORMED if case.text.endswith("</tool_call>")], ids=ids)
def test_a_closing_tag_that_is_cut_off_is_no_content(case: Case) -> None:
    for length in range(len("</tool_call>")):
        text = case.text.removesuffix("</tool_call>") + "</tool_call>"[:length]
        if case.format == "glm45" and "arg_key" in case.text:  # Before the tag, more arguments might have come.
            assert meaning_of(pieces_of(parser_of(case.format), text)).content == case.content
            continue
        assert meaning_of(pieces_of(parser_of(case.format), [text])) == case.meaning
        assert meaning_of(pieces_of(parser_of(case.format), text)) == case.meaning


def test_only_the_first_call_where_one_is_allowed() -> None:
    case = next(case for case in WELL_FORMED if len(case.calls) == 2)
    parser = parser_of(case.format, max_calls=1)
    assert meaning_of(pieces_of(parser, [case.text])).calls == (F1,)
    assert parser.finish_reason("stop") == "tool_calls"


def test_finish_reason_tells_of_calls() -> None:
    called, plain = parser_of("hermes", called_reason="stop"), parser_of("hermes")
    pieces_of(called, [WELL_FORMED[0].text])
    pieces_of(plain, ["hello"])
    assert called.finish_reason("stop") == "stop"
    assert plain.finish_reason("stop") == "stop"
    assert called.finish_reason("length") == "length"


def test_ids_of_mistral_have_nine_characters() -> None:
    parser = parser_of("mistral", new_id=short_call_id)
    [delta] = parser.push('[TOOL_CALLS]f[ARGS]{"a": 1}').tool_calls
    assert delta.id is not None
    assert len(delta.id) == 9
    assert delta.id.isalnum()


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        (Thinking.MAYBE, "<think>\nHm.\n</think>\n\nHello", Meaning("Hello", (), "Hm.")),
        (Thinking.MAYBE, "Hello <think>", Meaning("Hello <think>")),
        (Thinking.MAYBE, "  <thin", Meaning("  <thin")),
        (Thinking.OPEN, "Hm.\n</think>\n\nHello", Meaning("Hello", (), "Hm.")),
        (Thinking.OPEN, "<think>Hm.</think>Hello", Meaning("Hello", (), "Hm.")),
        (Thinking.OPEN, "Hm. And", Meaning("", (), "Hm. And")),
        (Thinking.OVER, "<think>", Meaning("<think>")),
        (
            Thinking.OPEN,
            'f?</think>\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>',
            Meaning("", (F1,), "f?"),
        ),
    ],
)
def test_reasoning_is_taken_apart(thinking: Thinking, text: str, expected: Meaning) -> None:
    assert meaning_of(pieces_of(parser_of("hermes", THINK, thinking), [text])) == expected
    assert meaning_of(pieces_of(parser_of("hermes", THINK, thinking), text)) == expected


def test_the_prompt_tells_where_reasoning_stands() -> None:
    assert THINK is not None
    assert THINK.at_end_of("<|im_start|>assistant\n<think>\n") is Thinking.OPEN
    assert THINK.at_end_of("<|im_start|>assistant\n<think>\n\n</think>\n\n") is Thinking.OVER
    assert THINK.at_end_of("<|im_start|>assistant\n") is Thinking.MAYBE


def test_reasoning_can_be_left_out() -> None:
    parser = parser_of("hermes", THINK, Thinking.OPEN, with_reasoning=False)
    assert meaning_of(pieces_of(parser, ["Hm.</think>Hello"])) == Meaning("Hello")


def test_deep_nesting_is_no_call_and_no_error() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 100_000
    [call] = meaning_of(pieces_of(parser_of("hermes"), [text])).calls
    assert call == ("f", '{"a": ' + "[" * 100_000)
    pythonic = "[f(a=" + "[" * 100_000
    assert meaning_of(pieces_of(parser_of("pythonic"), [pythonic])).calls[0][0] == "f"


def test_the_bars_of_deepseek_are_wide() -> None:
    assert B != "|"
