"""Grammars in llguidance's dialect of Lark: pieces to put together, and whole ones.

A *rule* is an expression that may stand inside another grammar; a *grammar* is complete and begins at `start`.
Writing one never compiles it: what it costs and whether it is sound is found out elsewhere, with limits.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from jserve.errors import RequestError
from jserve.text.grammars.json_schema import Strictness, bound_schema
from jserve.text.grammars.prefix_tree import prefix_tree

JSON_WHITESPACE = r"([ \t]{1,8}|\r?\n[ \t]{0,40})"
"""Between the tokens of JSON, at most once: a few blanks, or a line's end and the indentation of the next."""

_GAP = r"/(\r?\n){0,2}/"
"""What models write between their reasoning and their answer."""
_TEXT = r"/(.|\n)*/"

Marker = str | int
"""Text, or the id of a special token."""


def literal(text: str) -> str:
    """A rule for exactly this text, which must not be empty inside a terminal."""
    return json.dumps(text)


def marker(value: Marker) -> str:
    """A rule for a text or a special token."""
    return f"<[{value}]>" if isinstance(value, int) else literal(value)


def json_rule(
    schema: Any,
    *,
    any_whitespace: bool = True,
    whitespace_pattern: str | None = None,
    strictness: Strictness = "exact",
) -> str:
    """A rule for the JSON values that `schema` allows, as one expression: `%json {...}`.

    Whitespace between tokens is bounded, or absent where `any_whitespace` is False, or what `whitespace_pattern`
    (a regular expression) says; numbers are bounded, and objects are closed (`json_schema.py`). Raises
    RequestError, without `param`, for what cannot be enforced, unless `strictness` drops it.
    """
    guidance: dict[str, Any] = {"whitespace_flexible": False}
    if whitespace_pattern is not None or any_whitespace:
        guidance = {"whitespace_pattern": JSON_WHITESPACE if whitespace_pattern is None else whitespace_pattern}
    bounded = bound_schema(schema, strictness)
    try:
        return "%json " + json.dumps({"x-guidance": guidance, **bounded}, allow_nan=False)
    except ValueError:
        raise RequestError("the schema holds NaN or an infinity, which JSON does not have") from None


def json_object_rule(*, any_whitespace: bool = True, whitespace_pattern: str | None = None) -> str:
    """A rule for any JSON object."""
    return json_rule({"type": "object"}, any_whitespace=any_whitespace, whitespace_pattern=whitespace_pattern)


def regex_rule(pattern: str) -> str:
    r"""A rule for the texts that `pattern` matches from begin to end. `\d` and `\D` mean ASCII digits."""
    inner = pattern.removeprefix("^")
    if inner.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", inner):
        inner = inner[:-1]
    return f"/{regex_to_lark(inner, use_ascii='d')}/".replace("\n", "\\n") if inner else '""'


def choice_rule(choices: Sequence[str]) -> str:
    """A rule for exactly one of `choices`: a regular expression in which common beginnings stand once.

    As alternatives of a rule, the parser would keep a state for each of them at the first character.
    """
    if not choices:
        raise RequestError("a choice needs at least one text to choose from")
    texts = sorted(set(choices) - {""})
    if not texts:
        return '""'
    rule = f"/{prefix_tree(texts)}/"
    return f"({rule})?" if "" in choices else rule


def whole_grammar(rule: str) -> str:
    """The grammar of one rule."""
    return f"start: {rule}\n"


def user_grammar(text: str) -> str:
    """The grammar that a user wrote: Lark with a rule `start`, or GBNF with a rule `root` (`root ::= ...`)."""
    if not text.strip():
        raise RequestError("the grammar is empty")
    if "::=" not in text:
        if not re.search(r"(?m)^\s*\??start\b[^:\n]*:", text):
            raise RequestError("the grammar has neither a rule `start: ...` (Lark) nor a rule `root ::= ...` (GBNF)")
        return text
    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise RequestError("the grammar is nested too deeply") from None
    except Exception as error:
        raise RequestError(f"the GBNF grammar cannot be read: {error}") from error


def after_reasoning(grammar: str, begin: Marker, end: Marker, *, is_open: bool = False) -> str:
    """`grammar`, once the model has finished its reasoning.

    The reasoning stands between `begin` and `end` and may be left out; with `is_open` the prompt ends inside it,
    so that the output begins with reasoning and must contain `end`. Up to two line ends may precede `begin` (GLM
    writes one) and follow `end`: whoever takes the reasoning off takes them off too.
    """
    if isinstance(end, int):
        rules = f"thought: THOUGHT {marker(end)}\nTHOUGHT: {_TEXT}\n"
    else:
        rules = f"thought[lazy]: THOUGHT {literal(end)}\nTHOUGHT: {_TEXT}\n"
    block = "thought gap" if is_open else f"(gap {marker(begin)} thought gap)?"
    outer = f"start: {block} @answer\n{rules}gap: {_GAP}\n"
    inner = _grammars(grammar)
    inner[0] = {**inner[0], "name": "answer"}
    return json.dumps({"grammars": [{"name": "reasoning", "lark_grammar": outer}, *inner]})


def _grammars(grammar: str) -> list[dict[str, Any]]:
    if grammar.lstrip().startswith("{"):
        grammars: list[dict[str, Any]] = json.loads(grammar)["grammars"]
        return grammars
    return [{"lark_grammar": grammar}]
