"""Nodes of a Go template as Jinja, with the loop around it that Ollama has in Go.

A template either walks `.Messages` itself, or is for one turn of `.System`, `.Prompt` and `.Response` and run once
for each; the last turn ends where its `.Response` stands. Every text becomes a string in an expression, so that
Jinja's own rules of white space touch nothing. Source: `Template.Execute` in template/template.go of Ollama.
"""

from __future__ import annotations

import re
from itertools import count

from jserve.text.templates.go.expression import Scope, pipeline, quote
from jserve.text.templates.go.nodes import Action, Block, GoTemplateError, Node, Text, Token, parse
from jserve.text.tokenizers.tokenizer import Tokenizer

_GO = re.compile(r"\{\{-?\s*(\.|\$|end\b|else\b|range\b|with\b|if\s+(\.|\$|and\b|or\b|not\b|eq\b|\())")

_HEAD = """\
{%- set v = namespace(system='', prompt='', response='', messages=[], think=false, think_is_set=false, level='') -%}
{%- set v.think_is_set = enable_thinking is defined and enable_thinking is not none -%}
{%- set v.think = v.think_is_set and enable_thinking -%}
{%- set v.level = reasoning_effort|default('') or '' -%}
{%- macro show(value) -%}
{%- if value is string or value is number and value is not boolean -%}{{ value }}
{%- elif value is not none and value is defined -%}{{ value|tojson(separators=(',', ':')) }}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set v.text = message['content'] or '' -%}
{%- if message['role'] == 'system' -%}
{%- set v.system = v.system + ('\\n\\n' if v.system else '') + v.text -%}
{%- endif -%}
{%- set v.last = v.messages[-1] if v.messages else none -%}
{%- if v.last and v.last['role'] == message['role'] and message['role'] != 'tool' -%}
{%- set v.text = v.last['content'] + ('\\n\\n' + v.text if v.text else '') -%}
{%- set v.messages = v.messages[:-1] + [dict(v.last, content=v.text)] -%}
{%- else -%}
{%- set v.messages = v.messages + [dict(message, content=v.text)] -%}
{%- endif -%}
{%- endfor -%}
"""
"""Messages as Ollama hands them over: those of one role in a row are one, and `.System` is all of that role."""

_TURNS = """\
{%- set v.system = '' -%}
{%- for message in v.messages -%}
{%- if message['role'] == 'system' -%}
{%- if v.prompt or v.response -%}{{ turn() }}{%- set v.prompt = '' -%}{%- set v.response = '' -%}{%- endif -%}
{%- set v.system = message['content'] -%}
{%- elif message['role'] == 'user' -%}
{%- if v.response -%}
{{ turn() }}{%- set v.system = '' -%}{%- set v.prompt = '' -%}{%- set v.response = '' -%}
{%- endif -%}
{%- set v.prompt = message['content'] -%}
{%- elif message['role'] == 'assistant' -%}
{%- set v.response = message['content'] -%}
{%- endif -%}
{%- endfor -%}
"""


def looks_like_go(source: str) -> bool:
    """Whether a template is Go's: its fields begin with a dot, which is no Jinja."""
    return bool(_GO.search(source))


def translate(source: str) -> str:
    """A Jinja template that gives the prompts that Ollama makes with this one. Raises GoTemplateError."""
    nodes = parse(source)
    fields = {token.text for node in _walk(nodes) for token in _tokens_of(node) if token.kind == "field"}
    if ".Messages" in fields:
        return _HEAD + _Writer().write(nodes)
    if ".Prompt" not in fields:
        raise GoTemplateError("it uses neither .Messages nor .Prompt")
    if ".Response" not in fields:
        nodes.append(Action((Token("field", ".Response", False),)))
    turn = f"{{%- macro turn() -%}}{_Writer().write(nodes)}{{%- endmacro -%}}\n"
    return _HEAD + turn + _TURNS + _Writer().write(_cut(nodes)[0])


def with_bos(source: str, tokenizer: Tokenizer) -> str:
    """`translate`, with the tokenizer's BOS in front: Ollama adds it to every prompt, and Jinja templates write it."""
    bos = tokenizer.bos_token
    if bos is None or bos in source or tokenizer.encode("", add_special_tokens=True)[:1] != [tokenizer.bos_token_id]:
        return translate(source)
    return f"{{{{- {quote(bos)} -}}}}" + translate(source)


class _Writer:
    """Writes nodes. Go's variables are attributes of one namespace, each under a name of its own."""

    def __init__(self) -> None:
        self._numbers = count()

    def write(self, nodes: list[Node]) -> str:
        return self._list(nodes, Scope(None, {}))

    def _list(self, nodes: list[Node], scope: Scope) -> str:
        return "".join(self._node(node, scope) for node in nodes)

    def _node(self, node: Node, scope: Scope) -> str:
        if isinstance(node, Text):
            return f"{{{{- {quote(node.text)} -}}}}"
        if isinstance(node, Block):
            return self._range(node, scope) if node.kind == "range" else self._branch(node, scope)
        if (word := node.tokens[0].text) in ("break", "continue") and len(node.tokens) == 1:
            return f"{{%- {word} -%}}"
        names, value = self._declaration(node.tokens, scope)
        if not names:
            return f"{{{{- show({value}) -}}}}"
        return f"{{%- set {names[0]} = {value} -%}}"

    def _declaration(self, tokens: tuple[Token, ...], scope: Scope) -> tuple[list[str], str]:
        """The attributes that `$x := ...` or `$x = ...` sets, and the value; a plain pipeline sets none."""
        signs = [number for number, token in enumerate(tokens) if token.text in (":=", "=")]
        if not signs:
            return [], pipeline(tokens, scope)
        left, right = tokens[: signs[0]], tokens[signs[0] + 1 :]
        value = pipeline(right, scope)
        if tokens[signs[0]].text == "=":
            return [pipeline(left, scope)], value
        names = []
        for token in left:
            if token.kind == "variable":
                scope.variables[token.text] = self._new()
                names.append(scope.variables[token.text])
        return names, value

    def _new(self) -> str:
        return f"v.x{next(self._numbers)}"

    def _branch(self, block: Block, scope: Scope) -> str:
        inner = scope.inner(scope.dot)
        names, value = self._declaration(block.tokens, inner)
        setting = f"{{%- set {names[0]} = {value} -%}}" if names else ""
        condition = names[0] if names else value
        if block.kind == "with":
            inner.dot = self._new()
            setting += f"{{%- set {inner.dot} = {condition} -%}}"
            condition = inner.dot
        text = f"{setting}{{%- if {condition} -%}}{self._list(block.body, inner)}"
        if block.otherwise:
            text += f"{{%- else -%}}{self._list(block.otherwise, scope.inner(scope.dot))}"
        return text + "{%- endif -%}"

    def _range(self, block: Block, scope: Scope) -> str:
        """Lists count from 0, maps go in the order of their keys, as in Go."""
        inner = scope.inner(scope.dot)
        names, value = self._declaration(block.tokens, inner)
        items, dot, item = self._new(), self._new(), f"item{scope.depth}"
        key = names[0] if len(names) == 2 else ""
        if names:
            dot = names[-1]
        inner.dot = dot
        text = f"{{%- set {items} = {value} or [] -%}}"
        text += f"{{%- for {item} in ({items}|dictsort(true) if {items} is mapping else {items}) -%}}"
        text += f"{{%- set {dot} = {item}[1] if {items} is mapping else {item} -%}}"
        if key:
            text += f"{{%- set {key} = {item}[0] if {items} is mapping else loop.index0 -%}}"
        text += self._list(block.body, inner)
        if block.otherwise:
            text += f"{{%- else -%}}{self._list(block.otherwise, scope.inner(scope.dot))}"
        return text + "{%- endfor -%}"


def _walk(nodes: list[Node]) -> list[Node]:
    walked: list[Node] = []
    for node in nodes:
        walked.append(node)
        if isinstance(node, Block):
            walked += _walk(node.body) + _walk(node.otherwise)
    return walked


def _tokens_of(node: Node) -> tuple[Token, ...]:
    return () if isinstance(node, Text) else node.tokens


def _cut(nodes: list[Node]) -> tuple[list[Node], bool]:
    """The nodes before the first that prints `.Response`, that one included, and whether there was one."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Action):
            kept.append(node)
            is_cut = any(token.text == ".Response" for token in node.tokens)
        elif isinstance(node, Block):
            body, is_cut = _cut(node.body)
            otherwise, is_cut = ([], True) if is_cut else _cut(node.otherwise)
            kept.append(Block(node.kind, node.tokens, body, otherwise))
        else:
            kept.append(node)
            is_cut = False
        if is_cut:
            return kept, True
    return kept, False
