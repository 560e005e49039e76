"""What the grammars of calls allow is read back as calls whose arguments follow their schema."""

import json

import jsonschema
import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken

from jserve.text.grammars.grammar import after_reasoning
from jserve.text.output.reasoning import Thinking, reasoning_named
from jserve.text.tools.call_grammar import CallGrammar
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.parser import MessageParser
from jserve.text.tools.registry import FORMATS, GENERIC
from jserve.text.tools.tool import NO_ARGUMENTS, Tool
from tests.text.grammars.grammar_walk import Vocabulary
from tests.text.tokenizers.tokenizer_maker import train_byte_level

TOOLS = {
    "get_weather": Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "unit": {"enum": ["C", "F", 'a "quoted" one']},
                "where": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        is_strict=True,
    ),
    "get_time": Tool("get_time", NO_ARGUMENTS, is_strict=True),
    "get_weather_now": Tool("get_weather_now", {"type": "object", "properties": {"tags": {"type": "array"}}}),
}
THINK = reasoning_named("qwen3")
NAMES = [known.name for known in FORMATS]


class World:
    """A tokenizer in which the markers of a format are text, or special tokens."""

    def __init__(self, tool_format: ToolFormat, *, has_special: bool) -> None:
        self.format = tool_format
        backend = train_byte_level("gpt-2")
        if has_special:
            backend.add_special_tokens([AddedToken(marker, special=True) for marker in tool_format.markers])
        self.ids = {m: backend.token_to_id(m) for m in tool_format.markers} if has_special else {}
        self.think = backend.token_to_id("<think>")
        end = backend.token_to_id("<|im_end|>")
        self.vocabulary = Vocabulary(LLTokenizer(backend.to_str(), eos_token=end))
        self.names = {token: marker for marker, token in self.ids.items()}

    def writer(self, *, is_parallel: bool = True) -> CallGrammar:
        return CallGrammar(self.format, TOOLS, is_parallel, self.ids.get)

    def shown(self, text: str) -> str:
        """A walk's text with the markers that are special tokens."""
        for token, marker in self.names.items():
            text = text.replace(f"<[{token}]>", marker)
        return text

    def read(self, text: str, *, thinking: Thinking = Thinking.OVER) -> tuple[str, list[tuple[str, str]], str]:
        text = self.shown(text)
        reasoning = None if thinking is Thinking.OVER else THINK
        parser = MessageParser(reasoning, thinking, self.format, TOOLS)
        pieces = [parser.push(text), parser.finish()]
        calls = [call for piece in pieces for call in piece.tool_calls]
        content = "".join(piece.content for piece in pieces)
        assert all(call.name for call in calls)
        return content, [(call.name or "", call.arguments) for call in calls], parser.finish_reason("stop")


def format_named(name: str) -> ToolFormat:
    return next(known for known in FORMATS if known.name == name)


@pytest.fixture(scope="module")
def worlds() -> dict[tuple[str, bool], World]:
    return {(known.name, special): World(known, has_special=special) for known in FORMATS for special in (False, True)}


def check(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), dict(TOOLS[name].parameters))


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_message_that_must_be_calls_is_calls(
    worlds: dict[tuple[str, bool], World], name: str, has_special: bool
) -> None:
    world = worlds[name, has_special]
    grammar = world.writer().forced()
    walks = [world.vocabulary.walk(grammar, seed) for seed in range(8)]
    if name == "openai":  # Thought has no end where nobody thinks.
        walks = [walk for walk in walks if "analysis" not in walk.text]
    assert walks
    for walk in walks:
        assert walk.is_finished, walk.text
        content, calls, reason = world.read(walk.text)
        assert content.strip() == "", walk.text
        assert calls, walk.text
        assert reason == "tool_calls"
        check(calls)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "openai"])
def test_one_call_where_parallel_calls_are_off(worlds: dict[tuple[str, bool], World], name: str) -> None:
    world = worlds[name, False]
    grammar = world.writer(is_parallel=False).forced()
    for seed in range(4):
        _, calls, _ = world.read(world.vocabulary.walk(grammar, seed, free_tokens=0).text)
        assert len(calls) == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("openai",)])
def test_free_text_may_hold_no_other_calls(worlds: dict[tuple[str, bool], World], name: str) -> None:
    world = worlds[name, False]
    form = world.format.form
    grammar = world.writer().free()
    good = form.write([("get_time", "{}")])
    bad = form.write([("get_time", '{"zone": 1}')])
    unknown = form.write([("get_lost", "{}")])
    assert accepts(world, grammar, good)
    assert accepts(world, grammar, "Hello.")
    assert accepts(world, grammar, "")
    assert not accepts(world, grammar, bad)
    assert not accepts(world, grammar, unknown)
    if form.trigger:
        assert accepts(world, grammar, f"Let me see. {good} And {good} so.")
        assert not accepts(world, grammar, f"Let me see. {good} And {bad}")


def accepts(world: World, grammar: str, text: str) -> bool:
    from llguidance import LLMatcher

    matcher = LLMatcher(world.vocabulary.tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = world.vocabulary.tokenizer.tokenize_str(text)
    return bool(matcher.validate_tokens([*tokens, world.vocabulary.tokenizer.eos_token]) == len(tokens) + 1)


def test_reasoning_may_come_before_a_call_that_must_come(worlds: dict[tuple[str, bool], World]) -> None:
    world = worlds["hermes", False]
    grammar = after_reasoning(world.writer().forced(), world.think, "</think>")
    call = GENERIC.form.write([("get_time", "{}")])
    assert accepts(world, grammar, f"<think>\nIs <tool_call> right?\n</think>\n\n{call}")
    assert accepts(world, grammar, f"\n<think>\nHm.</think>\n{call}")
    assert accepts(world, grammar, call)
    assert not accepts(world, grammar, "<think>\nno\n</think>\n\nHello")


def test_an_answer_of_a_form_or_calls(worlds: dict[tuple[str, bool], World]) -> None:
    world = worlds["hermes", False]
    grammar = world.writer().or_answer('start: "yes" | "no"\n')
    assert accepts(world, grammar, "yes")
    assert accepts(world, grammar, GENERIC.form.write([("get_time", "{}")]))
    assert not accepts(world, grammar, "perhaps")
    assert not accepts(world, grammar, GENERIC.form.write([("get_time", '{"a": 1}')]))


def test_a_trigger_is_one_whether_it_is_a_token_or_spelled(worlds: dict[tuple[str, bool], World]) -> None:
    world = worlds["hermes", True]
    grammar = world.writer().free()
    tokenizer = world.vocabulary.tokenizer

    def spelled(text: str) -> list[int]:
        return [token for character in text for token in tokenizer.tokenize_str(character)]

    def accepted(tokens: list[int]) -> bool:
        from llguidance import LLMatcher

        return bool(LLMatcher(tokenizer, grammar, log_level=0).validate_tokens(tokens) == len(tokens))

    body = '\n{"name": "get_time", "arguments": {'
    for trigger in ([world.ids["<tool_call>"]], spelled("<tool_call>")):
        begun = [*spelled("Well. "), *trigger]
        assert accepted([*begun, *spelled(body), *spelled("}}")])
        assert not accepted([*begun, *spelled(body), *spelled('"a": 1}}')])
        assert not accepted([*begun, *spelled(" not a call")])


MARKED = {"llama3_json": "<|python_tag|>", "pythonic": "<|python_start|>", "llama4_json": "<|python_start|>"}


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("name", MARKED)
def test_a_call_behind_a_mark_is_held_to_its_schema(
    worlds: dict[tuple[str, bool], World], name: str, has_special: bool
) -> None:
    world = worlds[name, has_special]
    grammar, form = world.writer().free(), world.format.form
    good, bad = (form.write([("get_time", arguments)]) for arguments in ("{}", '{"zone": 1}'))
    for before in ("", "Let me see. ", "First [this] and {that}. "):
        assert accepts(world, grammar, f"{before}{MARKED[name]}{good}")
        assert not accepts(world, grammar, f"{before}{MARKED[name]}{bad}")
    assert accepts(world, grammar, f"Well. {MARKED[name]}{good} so {MARKED[name]}{good}")
    assert not accepts(world, grammar, f"Well. {MARKED[name]}{good} so {MARKED[name]}{bad}")
    content, calls, _ = world.read(f"Well. {MARKED[name]}{good}")
    assert (content, calls) == ("Well.", [("get_time", "{}")])


ANALYSIS = "<|channel|>analysis<|message|>Hm {no}.<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize("has_special", [False, True])
def test_a_form_of_output_begins_in_the_last_channel(worlds: dict[tuple[str, bool], World], has_special: bool) -> None:
    world = worlds["openai", has_special]
    grammar = world.writer().final_answer('start: "yes" | "no"\n')
    for before in (FINAL, ANALYSIS + FINAL, ANALYSIS * 2 + "<|channel|>final <|constrain|>json<|message|>"):
        assert accepts(world, grammar, f"{before}yes")
        assert not accepts(world, grammar, f"{before}perhaps")
    assert not accepts(world, grammar, "yes")
    assert not accepts(world, grammar, f"{ANALYSIS}yes")
    assert world.read(f"{ANALYSIS}{FINAL}yes")[0] == "yes"


def test_channels_with_calls_or_a_form_of_output(worlds: dict[tuple[str, bool], World]) -> None:
    world = worlds["openai", True]
    either, free = world.writer().or_answer('start: "yes" | "no"\n'), world.writer().free()
    heads = (
        "<|channel|>commentary to=functions.get_time <|constrain|>json",
        " to=functions.get_time<|channel|>commentary json",
    )
    for head in heads:
        good, bad = (f"{head}<|message|>{arguments}<|call|>" for arguments in ("{}", '{"zone": 1}'))
        for grammar in (either, free, world.writer().forced()):
            assert accepts(world, grammar, ANALYSIS + good)
            assert not accepts(world, grammar, ANALYSIS + bad)
        assert accepts(world, either, ANALYSIS + PREAMBLE + good)
        assert world.read(ANALYSIS + PREAMBLE + good)[:2] == ("I look.", [("get_time", "{}")])
    assert accepts(world, either, f"{ANALYSIS}{FINAL}no")
    assert not accepts(world, either, f"{ANALYSIS}{FINAL}perhaps")
    assert accepts(world, free, f"{ANALYSIS}{PREAMBLE}{FINAL}perhaps")


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_a_limit_cuts_leaves_no_content(
    worlds: dict[tuple[str, bool], World], name: str, has_special: bool
) -> None:
    """vllm#47903: the opening tag of a forced call came as content."""
    world = worlds[name, has_special]
    grammar = world.writer().forced()
    walks = [world.vocabulary.walk(grammar, seed) for seed in range(3)]
    for text in (world.shown(walk.text) for walk in walks if "analysis" not in walk.text):
        for cut in range(0, len(text), 1 + len(text) // 200):
            content = _content(MessageParser(None, Thinking.OVER, world.format, TOOLS, is_forced=True), text[:cut])
            assert content.strip() == "", text[:cut]
            content = _content(MessageParser(None, Thinking.OVER, world.format, TOOLS), text[:cut])
            assert not any(marker in content for marker in world.format.markers), text[:cut]


def _content(parser: MessageParser, text: str) -> str:
    return parser.push(text).content + parser.finish(is_cut=True).content
