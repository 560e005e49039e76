"""Qwen3-Coder and Qwen3.5: <tool_call><function=f><parameter=a>value</parameter></function></tool_call>.

A value is plain text between line breaks. One of a parameter that can only be a string is passed on as it
comes; any other is read to its end, as JSON where the schema allows that type, else as a string.
Hermes' JSON inside the tags is understood as well, and is what constrained calls are written in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jserve.text.tools.draft import Draft
from jserve.text.tools.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.hermes import BEGIN, END, Hermes, read_tagged_call
from jserve.text.tools.json_text import WORDS
from jserve.text.tools.tool import Tool, check_name

FUNCTION, PARAMETER = "<function=", "<parameter="
_VALUE_ENDS = ("\n</parameter>", "</parameter>")
_NAME = re.compile(r"[^<>\n]+")
_NO_TOOL = Tool("", {})


class Qwen3Coder:
    """Calls in XML-like tags."""

    name = "qwen3_coder"
    markers = (BEGIN, END, FUNCTION, "</function>", PARAMETER, "</parameter>")
    form = Hermes.form

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        while opening := (yield from feed.copy_until((BEGIN, FUNCTION), draft.content)):
            if opening == BEGIN:
                feed.record()
                yield from feed.skip_space()
                between = feed.recorded()
                if (yield from feed.starts("{")):
                    yield from read_tagged_call(feed, draft)
                    continue
                opening += between
                if not (yield from feed.try_any((FUNCTION,))):
                    draft.content(opening)
                    continue
                opening += FUNCTION
            yield from _read_function(feed, draft, opening, tools)


def _read_function(feed: TextFeed, draft: Draft, opening: str, tools: Mapping[str, Tool]) -> Reading[None]:
    name: list[str] = []
    try:
        yield from feed.copy_span(_NAME, name.append)
        yield from feed.expect(">")
        draft.begin_call(check_name("".join(name).strip()))
    except (Malformed, TextEnded) as error:
        draft.content(opening + "".join(name))
        if isinstance(error, TextEnded):
            raise
        return
    tool = tools.get("".join(name).strip(), _NO_TOOL)
    seen: set[str] = set()
    while True:
        yield from feed.skip_space()
        closing = yield from feed.try_any((PARAMETER, "</function>", END))
        if closing != PARAMETER:
            if not closing and ((yield from feed.at_end()) or (yield from feed.starts("<"))):
                raise TextEnded  # Further parameters may have been meant.
            break
        key: list[str] = []
        if not (yield from feed.copy_until((">",), key.append)):
            raise TextEnded
        parameter = "".join(key).strip()
        draft.arguments(f"{', ' if seen else '{'}{json.dumps(parameter, ensure_ascii=False)}: ")
        seen.add(parameter)
        yield from _read_value(feed, draft, tool.types_of(parameter))
    draft.arguments("}" if seen else "{}")
    if closing != END:
        yield from feed.skip_space()
        yield from feed.close(END)


def _read_value(feed: TextFeed, draft: Draft, types: frozenset[str]) -> Reading[None]:
    yield from feed.try_any(("\n",))
    if not types or types == {"string"}:
        draft.arguments('"')
        if not (yield from feed.copy_until(_VALUE_ENDS, lambda text: draft.arguments(_quoted(text)))):
            raise TextEnded
        draft.arguments('"')
        return
    parts: list[str] = []
    if not (yield from feed.copy_until(_VALUE_ENDS, parts.append)):
        raise TextEnded  # Half a value may look like a whole one.
    draft.arguments(value_text("".join(parts), types))


def value_text(text: str, types: frozenset[str]) -> str:
    """JSON of a value that was written as plain text, "string" being the last of `types` to be tried."""
    stripped = text.strip()
    stripped = WORDS.get(stripped, stripped)
    try:
        value = json.loads(stripped)
        if not types or _is_one_of(value, types):
            return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    return json.dumps(text, ensure_ascii=False)


def _is_one_of(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, str):
        return False  # A string in quotes is text that has quotes, unless nothing but JSON can be meant.
    kind = "boolean" if isinstance(value, bool) else "null" if value is None else ""
    kinds = {int: ("integer", "number"), float: ("number",), list: ("array",), dict: ("object",)}
    return bool(types & {kind, *kinds.get(type(value), ())})


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
