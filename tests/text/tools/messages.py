"""Messages as models of each format write them, and what they mean."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from jserve.text.output.pieces import OutputParser, OutputPiece, joined
from jserve.text.output.reasoning import ReasoningFormat, Thinking
from jserve.text.tools.parser import MessageParser
from jserve.text.tools.registry import format_named
from jserve.text.tools.tool import Tool

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": ["object", "null"]}},
}
TOOLS = {name: Tool(name, PARAMETERS) for name in ("f", "g")}
B = "\uff5c"


@dataclass(frozen=True)
class Meaning:
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


@dataclass
class Case:
    format: str
    text: str
    content: str = ""
    calls: Sequence[tuple[str, str]] = field(default_factory=tuple)
    reasoning: str = ""

    @property
    def meaning(self) -> Meaning:
        return Meaning(self.content, tuple(self.calls), self.reasoning)


F1 = ("f", '{"a": 1}')
G = ("g", "{}")

WELL_FORMED = [
    Case("hermes", 'Hi\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "Hi", [F1]),
    Case(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n',
        "",
        [F1, G],
    ),
    Case("hermes", '<tool_call>{"arguments": {"a": 1}, "id": [2], "name": "f"}</tool_call>', "", [F1]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F1]),
    Case("hermes", '<tool_call>{"name": "g", "arguments": null}</tool_call>', "", [G]),
    Case(
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> {\\"x\\": [\\u00e9, 👍]}\\n"}}</tool_call>ok',
        "ok",
        [("f", '{"s": "</tool_call> {\\"x\\": [\\u00e9, 👍]}\\n"}')],
    ),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', "", [F1]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "", [F1]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"s": "x\ny"}}</tool_call>', "", [("f", '{"s": "x\\ny"}')]),
    Case("hermes", "just  text \n", "just  text \n"),
    Case(
        "qwen3_coder",
        'Go\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\none\n"two"\n\n</parameter>\n'
        '<parameter=o>\n{"x": [true]}\n</parameter>\n</function>\n</tool_call>',
        "Go",
        [("f", '{"a": 1, "s": "one\\n\\"two\\"\\n", "o": {"x": [true]}}')],
    ),
    Case("qwen3_coder", "<tool_call>\n<function=g>\n</function>\n</tool_call>", "", [G]),
    Case("qwen3_coder", "<function=f><parameter=a>many</parameter></function>", "", [("f", '{"a": "many"}')]),
    Case("qwen3_coder", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F1]),
    Case("llama3_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", [F1, G]),
    Case("llama3_json", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [F1]),
    Case("llama3_json", '{"name": "someone", "age": 4}', '{"name": "someone", "age": 4}'),
    Case("llama3_json", '{"a": 1} is an object', '{"a": 1} is an object'),
    Case(
        "minimax_m2",
        'Go\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n<parameter name="s">x\n"y"'
        '</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        "Go",
        [("f", '{"a": 1, "s": "x\\n\\"y\\""}'), G],
    ),
    Case("minimax_m2", '<minimax:tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</minimax:tool_call>', "", [F1]),
    Case(
        "glm45",
        "Go\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key>\n"
        "<arg_value>x y</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
        "Go",
        [("f", '{"a": 1, "s": "x y"}'), G],
    ),
    Case("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>", "", [F1]),
    Case("glm45", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F1]),
    Case(
        "seed_oss",
        "Go\n<seed:tool_call>\n<function=f>\n<parameter=a>1</parameter>\n<parameter=s>x y</parameter>\n</function>\n"
        "</seed:tool_call>",
        "Go",
        [("f", '{"a": 1, "s": "x y"}')],
    ),
    Case("seed_oss", '<seed:tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</seed:tool_call>', "", [F1]),
    Case(
        "kimi_k2",
        "x<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        "x",
        [F1, G],
    ),
    Case("kimi_k2", '<|tool_call_begin|>f<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>', "", [F1]),
    Case(
        "hunyuan_a13b",
        'Hi<tool_calls>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]</tool_calls>',
        "Hi",
        [F1, G],
    ),
    Case("granite", 'Hi<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]', "Hi", [F1, G]),
    Case("granite", '<tool_call>[{"name": "f", "arguments": {"a": 1}}]', "", [F1]),
    Case("phi4_mini_json", '<|tool_call|>{"name": "f", "arguments": {"a": 1}}<|/tool_call|>', "", [F1]),
    Case("phi4_mini_json", 'functools[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]', "", [F1, G]),
    Case(
        "cohere_command3",
        'Hm.<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}},\n'
        '    {"tool_call_id": "1", "tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
        "Hm.",
        [F1, G],
    ),
    Case("llama4_json", '<|python_start|><|python_end|>{"name": "f", "parameters": {"a": 1}}', "", [F1]),
    Case("llama4_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", [F1, G]),
    Case("llama4_json", "<|python_start|>[f(a=1), g()]<|python_end|>", "", [F1, G]),
    Case("pythonic", "[f(a=1), g()]", "", [F1, G]),
    Case(
        "pythonic",
        "<|python_start|>[f(s='''it's \"so\"''', o={'k': [1.5, (None, -2)], 't': True})]<|python_end|>",
        "",
        [("f", '{"s": "it\'s \\"so\\"", "o": {"k": [1.5, [null, -2]], "t": true}}')],
    ),
    Case("pythonic", "Sure:\n```tool_code\nf(a=1)\ng()\n```", "Sure:", [F1, G]),
    Case("pythonic", '[{"name": "f", "parameters": {"a": 1}}, {"name": "g"}]', "", [F1, G]),
    Case("pythonic", "[1, 2] is a list", "[1, 2] is a list"),
    Case("pythonic", '[f(s="\\x41\\u00e9\\U0001F600")]', "", [("f", '{"s": "\\u0041\\u00e9😀"}')]),
    Case("mistral", 'ok[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]', "ok", [F1, G]),
    Case("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', "", [F1, G]),
    Case("mistral", "[TOOL_CALLS]none", "[TOOL_CALLS]none"),
    Case(
        "deepseek_v3",
        f"x<{B}tool▁calls▁begin{B}><{B}tool▁call▁begin{B}>function<{B}tool▁sep{B}>f\n```json\n"
        f'{{"a": 1}}\n```<{B}tool▁call▁end{B}>\n<{B}tool▁call▁begin{B}>function<{B}tool▁sep{B}>g\n```json\n{{}}\n```'
        f"<{B}tool▁call▁end{B}><{B}tool▁calls▁end{B}>",
        "x",
        [F1, G],
    ),
    Case(
        "deepseek_v31",
        f'<{B}tool▁calls▁begin{B}><{B}tool▁call▁begin{B}>f<{B}tool▁sep{B}>{{"a": 1}}<{B}tool▁call▁end{B}>'
        f"<{B}tool▁call▁begin{B}>g<{B}tool▁sep{B}>{{}}<{B}tool▁call▁end{B}><{B}tool▁calls▁end{B}>",
        "",
        [F1, G],
    ),
    Case(
        "functiongemma",
        '<start_function_call>call:f{a:1,s:<escape>x "y"<escape>}<end_function_call>'
        "<start_function_call>call:g{}<end_function_call>",
        "",
        [("f", '{"a": 1, "s": "x \\"y\\""}'), G],
    ),
    Case("functiongemma", '<start_function_call>call:f{"a": 1}<end_function_call>', "", [F1]),
    Case(
        "gemma4",
        '<|tool_call>call:f{a:1,s:<|"|>x<|"|>,o:{k:[true,null,<|"|>v<|"|>]}}<tool_call|>',
        "",
        [("f", '{"a": 1, "s": "x", "o": {"k": [true, null, "v"]}}')],
    ),
    Case(
        "openai",
        "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
        "Wait.",
        [F1],
        "Hm.",
    ),
    Case("openai", "<|channel|>final<|message|>Hello", "Hello"),
    Case("openai", "Hello", "Hello"),
    Case("openai", " to=functions.g<|channel|>commentary json<|message|>", "", [G]),
]

# Not calls: what was written comes back, all of it.
MALFORMED = [
    ("hermes", "<tool_call>oops</tool_call> and more"),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f'),
    ("hermes", "a < b <tool"),
    ("qwen3_coder", "<tool_call>\nno function</tool_call>"),
    ("qwen3_coder", "<tool_call>\n<function=<b>"),
    ("glm45", "<tool_call>no function</tool_call>"),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="f'),
    ("granite", "<|tool_call|>nothing"),
    ("hunyuan_a13b", "<tool_calls>nothing</tool_calls>"),
    ("kimi_k2", "<|tool_calls_section_begin|>nothing"),
    ("kimi_k2", "<|tool_call_begin|>functions.f:0 nothing"),
    ("seed_oss", "<seed:tool_call>no function</seed:tool_call>"),
    ("cohere_command3", "<|START_ACTION|>[nothing]<|END_ACTION|>"),
    ("phi4_mini_json", "functools are tools"),
    ("llama3_json", '{"name": "f", "parameters": 5}'),
    ("pythonic", "[f[0]]"),
    ("pythonic", "[unknown(a=1)]"),
    ("mistral", "[TOOL_CALLS] [nothing]"),
    ("deepseek_v31", f"<{B}tool▁calls▁begin{B}>nothing"),
    ("gemma4", "<|tool_call>f{}<tool_call|>"),
    ("openai", "<|channel|>final"),
]


def parser_of(
    name: str, reasoning: ReasoningFormat | None = None, thinking: Thinking = Thinking.MAYBE, **options: Any
) -> MessageParser:
    known = format_named(name)
    assert known is not None
    return MessageParser(reasoning, thinking, known, TOOLS, **options)


def pieces_of(parser: OutputParser, texts: Iterable[str]) -> list[OutputPiece]:
    return [*(parser.push(text) for text in texts), parser.finish()]


def meaning_of(pieces: Sequence[OutputPiece]) -> Meaning:
    whole = joined(pieces)
    return Meaning(
        whole.content, tuple((call.name or "", call.arguments) for call in whole.tool_calls), whole.reasoning
    )


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]
