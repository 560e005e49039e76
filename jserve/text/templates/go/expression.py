"""A pipeline of a Go template as a Jinja expression."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from jserve.text.templates.go.nodes import MAX_NESTING, GoTemplateError, Token

ROOT = {
    "System": "v.system",
    "Prompt": "v.prompt",
    "Response": "v.response",
    "Suffix": "''",
    "Messages": "v.messages",
    "Tools": "(tools or [])",
    "Think": "v.think",
    "ThinkLevel": "v.level",
    "IsThinkSet": "v.think_is_set",
}
"""What Ollama gives a template, in the names of the Jinja around it (`translate`)."""
_FIELDS = {"ToolName": "name", "ToolCallID": "tool_call_id", "ID": "id", "Thinking": "reasoning_content"}
"""Fields of messages and calls where Hugging Face's name is not the same word."""
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_METHODS = frozenset(dir(dict))
_COMPARISONS = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_DATE = "strftime_now('%Y-%m-%d')"


@dataclass(slots=True)
class Scope:
    """What `.` and the variables mean. `dot` None is the root; variables map to attributes of `v`."""

    dot: str | None
    variables: dict[str, str]
    depth: int = 0

    def inner(self, dot: str | None) -> Scope:
        return Scope(dot, dict(self.variables), self.depth + 1)


def pipeline(tokens: tuple[Token, ...], scope: Scope) -> str:
    """The expression, in parentheses where it needs them. Raises GoTemplateError."""
    reader = _Reader(tokens, scope)
    expression = reader.pipeline(0)
    if reader.peek() is not None:
        raise GoTemplateError(f"{_shown(tokens)} is not understood")
    return expression


def unquote(token: Token) -> str:
    """The value of a string literal."""
    if token.text.startswith("`"):
        return token.text[1:-1]
    try:
        value = json.loads(token.text.replace("\\'", "'"))
    except ValueError:
        raise GoTemplateError(f"the string {token.text[:40]} is not understood") from None
    assert isinstance(value, str)
    return value


def quote(text: str) -> str:
    """A Jinja string literal, on one line and with nothing in it that Jinja would read."""
    return json.dumps(text, ensure_ascii=False)


class _Reader:
    def __init__(self, tokens: tuple[Token, ...], scope: Scope) -> None:
        self._tokens = tokens
        self._scope = scope
        self._position = 0

    def peek(self) -> Token | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def pipeline(self, depth: int) -> str:
        if depth > MAX_NESTING:
            raise GoTemplateError("parentheses are nested too deep")
        value = self._command(None, depth)
        while (token := self.peek()) is not None and token.text == "|":
            self._position += 1
            value = self._command(value, depth)
        return value

    def _command(self, piped: str | None, depth: int) -> str:
        first = self.peek()
        if first is None:
            raise GoTemplateError(f"{_shown(self._tokens)} ends too early")
        if first.kind == "word" and first.text not in ("true", "false", "nil"):
            self._position += 1
            arguments = self._operands(depth)
            return _call(first.text, [*arguments, *([] if piped is None else [piped])])
        operands = self._operands(depth)
        if len(operands) != 1 or piped is not None:
            raise GoTemplateError(f"{_shown(self._tokens)} is not understood")
        return operands[0]

    def _operands(self, depth: int) -> list[str]:
        operands = []
        while (token := self.peek()) is not None and token.text not in ("|", ")"):
            operands.append(self._operand(depth))
        return operands

    def _operand(self, depth: int) -> str:
        token = self._tokens[self._position]
        self._position += 1
        if token.kind == "string":
            return quote(unquote(token))
        if token.kind == "number":
            return f"({token.text})"
        if token.text in ("true", "false", "nil"):
            return {"true": "true", "false": "false", "nil": "none"}[token.text]
        if token.kind == "word":
            return _call(token.text, [])
        if token.kind == "field":
            return self._fields(_root_field(token.text) if self._scope.dot is None else _item(self._scope.dot, token))
        if token.text == ".":
            return self._scope.dot or _no_root()
        if token.kind == "variable":
            return self._variable(token)
        if token.text == "(":
            inner = self.pipeline(depth + 1)
            if (close := self.peek()) is None or close.text != ")":
                raise GoTemplateError(f"{_shown(self._tokens)} has an open parenthesis")
            self._position += 1
            return self._fields(f"({inner})")
        raise GoTemplateError(f"{_shown(self._tokens)} is not understood")

    def _variable(self, token: Token) -> str:
        if token.text == "$":
            following = self.peek()
            if following is None or following.kind != "field" or following.spaced:
                return _no_root()
            self._position += 1
            return self._fields(_root_field(following.text))
        if token.text not in self._scope.variables:
            raise GoTemplateError(f"variable {token.text} is not declared")
        return self._fields(self._scope.variables[token.text])

    def _fields(self, value: str) -> str:
        """`value` with the fields that are written right behind it."""
        while (token := self.peek()) is not None and token.kind == "field" and not token.spaced:
            self._position += 1
            value = _item(value, token)
        return value


def _root_field(text: str) -> str:
    name = text[1:]
    if name not in ROOT:
        raise GoTemplateError(f"the variable .{name} is not supported; supported are {', '.join(ROOT)}")
    return ROOT[name]


def _no_root() -> str:
    raise GoTemplateError("the whole of the template's variables ({{ . }} at the top) cannot be used")


def _item(value: str, token: Token) -> str:
    name = token.text[1:]
    key = _FIELDS.get(name) or _CAPITAL.sub("_", name).lower()
    if key in _METHODS:  # Jinja would find the dictionary's own where the key is missing.
        return f"({value} or {{}}).get('{key}')"
    return f"{value}['{key}']"


def _call(name: str, arguments: list[str]) -> str:
    if name == "eq" and len(arguments) >= 2:
        first, *others = arguments
        return "(" + " or ".join(f"{first} == {other}" for other in others) + ")"
    if name in ("and", "or") and arguments:
        return "(" + f" {name} ".join(arguments) + ")"
    if name in _COMPARISONS and len(arguments) == 2:
        return f"({arguments[0]} {_COMPARISONS[name]} {arguments[1]})"
    if name == "index" and arguments:
        return arguments[0] + "".join(f"[{argument}]" for argument in arguments[1:])
    if name == "slice" and 1 <= len(arguments) <= 3:
        return f"{arguments[0]}[{arguments[1] if len(arguments) > 1 else ''}:{':'.join(arguments[2:])}]"
    if name == "printf" and arguments:
        return _printf(arguments)
    exact: dict[tuple[str, int], Callable[[], str]] = {
        ("not", 1): lambda: f"(not {arguments[0]})",
        ("len", 1): lambda: f"(({arguments[0]} or [])|length)",
        ("json", 1): lambda: f"({arguments[0]}|tojson(separators=(',', ':')))",
        ("print", 1): lambda: arguments[0],
        ("currentDate", 0): lambda: _DATE,
    }
    if (name, len(arguments)) in exact:
        return exact[name, len(arguments)]()
    raise GoTemplateError(f"the function {name!r} with {len(arguments)} arguments is not supported")


def _printf(arguments: list[str]) -> str:
    form, values = arguments[0], arguments[1:]
    verbs = re.findall(r"%.", form)
    if not form.startswith('"') or any(verb not in ("%s", "%d", "%v", "%%") for verb in verbs):
        raise GoTemplateError(f"printf {form[:40]} is not supported; supported are %s, %d and %v")
    return f"({form.replace('%v', '%s')} % ({', '.join(values)},))" if values else form


def _shown(tokens: tuple[Token, ...]) -> str:
    return "{{ " + " ".join(token.text for token in tokens)[:80] + " }}"
