"""Calls in tags, each parameter in its own, its value as plain text.

Qwen3-Coder and Qwen3.5: <tool_call><function=f><parameter=a>value</parameter></function></tool_call>. Seed-OSS: the
same in <seed:tool_call>. MiniMax-M2:
<minimax:tool_call><invoke name="f"><parameter name="a">value</parameter></invoke></minimax:tool_call>. GLM-4.5 to
4.7: <tool_call>f<arg_key>a</arg_key><arg_value>value</arg_value></tool_call>.

A value of a parameter that can only be a string is passed on as it comes; any other is read to its end, as JSON
where the schema allows that type, else as a string. Hermes' JSON inside the outer tags is understood as well, and
is what constrained calls are written in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.hermes import read_tagged_call
from jserve.text.tools.json_text import WORDS
from jserve.text.tools.tool import Tool, check_name

_NAME = re.compile(r"[^<>\"\n]+")
_NO_TOOL = Tool("", {})


@dataclass(frozen=True, slots=True)
class Tags:
    """`begin` and `end` stand around calls. Then `function` NAME `name_end` ... `function_end`, and in between
    `parameter` KEY `key_end` VALUE `value_end`, each time. `function` is "" where the name follows `begin`.
    """

    begin: str
    end: str
    function: str
    name_end: str
    function_end: str
    parameter: str
    key_end: str
    value_begin: str
    value_end: str

    @property
    def all(self) -> tuple[str, ...]:
        parts = (self.begin, self.end, self.function, self.function_end, self.parameter, self.value_end)
        more = (self.key_end, self.value_begin) if self.value_begin else ()
        return tuple(part for part in (*parts, *more) if part)


class TaggedParameters:
    """Calls in XML-like tags."""

    def __init__(self, name: str, tags: Tags) -> None:
        self.name = name
        self.markers = tags.all
        self.form = CallForm(
            before=f'{tags.begin}\n{{"name": "NAME", "arguments": ',
            after=f"}}\n{tags.end}",
            separator="\n",
            trigger=tags.begin,
        )
        self._tags = tags

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        tags = self._tags
        openings = (tags.begin, tags.function) if tags.function else (tags.begin,)
        while opening := (yield from feed.copy_until(openings, draft.content)):
            if opening == tags.begin:
                feed.record()
                yield from feed.skip_space()
                between = feed.recorded()
                if (yield from feed.starts("{")):
                    yield from read_tagged_call(feed, draft, tags.begin, tags.end)
                    continue
                opening += between
                if tags.function and not (yield from feed.try_any((tags.function,))):
                    draft.content(opening)
                    continue
                opening += tags.function
            yield from self._read_function(feed, draft, opening, tools)

    def _read_function(self, feed: TextFeed, draft: Draft, opening: str, tools: Mapping[str, Tool]) -> Reading[None]:
        tags = self._tags
        name: list[str] = []
        try:
            yield from feed.copy_span(_NAME, name.append)
            if tags.name_end:
                yield from feed.expect(tags.name_end)
            else:
                yield from self._check_head(feed)
            draft.begin_call(check_name("".join(name).strip()))
        except (Malformed, TextEnded) as error:
            draft.content(opening + "".join(name))
            if isinstance(error, TextEnded):
                raise
            return
        tool = tools.get("".join(name).strip(), _NO_TOOL)
        ends = tuple(end for end in (tags.function_end, tags.end) if end)
        seen: set[str] = set()
        while True:
            yield from feed.skip_space()
            closing = yield from feed.try_any((tags.parameter, *ends))
            if closing != tags.parameter:
                if not closing and ((yield from feed.at_end()) or (yield from feed.starts("<"))):
                    yield from feed.close(tags.end)
                    raise TextEnded  # Further parameters may have been meant.
                break
            key: list[str] = []
            if not (yield from feed.copy_until((tags.key_end,), key.append)):
                raise TextEnded
            if tags.value_begin and not (yield from feed.copy_until((tags.value_begin,), lambda _: None)):
                raise TextEnded
            parameter = "".join(key).strip()
            draft.arguments(f"{', ' if seen else '{'}{json.dumps(parameter, ensure_ascii=False)}: ")
            seen.add(parameter)
            yield from _read_value(feed, draft, tool.types_of(parameter), tags.value_end)
        draft.arguments("}" if seen else "{}")
        if closing != tags.end:
            yield from feed.skip_space()
            yield from feed.close(tags.end)

    def _check_head(self, feed: TextFeed) -> Reading[None]:
        """A name that nothing ends must be followed by a line's end or a tag."""
        if (yield from feed.at_end()):
            raise TextEnded
        if not (yield from feed.starts("\n<")):
            raise Malformed


def qwen3_coder() -> TaggedParameters:
    tags = Tags("<tool_call>", "</tool_call>", "<function=", ">", "</function>", "<parameter=", ">", "", "</parameter>")
    return TaggedParameters("qwen3_coder", tags)


def minimax_m2() -> TaggedParameters:
    tags = Tags(
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        '<invoke name="',
        '">',
        "</invoke>",
        '<parameter name="',
        '">',
        "",
        "</parameter>",
    )
    return TaggedParameters("minimax_m2", tags)


def glm45() -> TaggedParameters:
    tags = Tags("<tool_call>", "</tool_call>", "", "", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    return TaggedParameters("glm45", tags)


def seed_oss() -> TaggedParameters:
    tags = Tags(
        *("<seed:tool_call>", "</seed:tool_call>", "<function=", ">", "</function>", "<parameter=", ">", ""),
        "</parameter>",
    )
    return TaggedParameters("seed_oss", tags)


def _read_value(feed: TextFeed, draft: Draft, types: frozenset[str], end: str) -> Reading[None]:
    ends = (f"\n{end}", end)
    yield from feed.try_any(("\n",))
    if not types or types == {"string"}:
        draft.arguments('"')
        if not (yield from feed.copy_until(ends, lambda text: draft.arguments(_quoted(text)))):
            raise TextEnded
        draft.arguments('"')
        return
    parts: list[str] = []
    if not (yield from feed.copy_until(ends, parts.append)):
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
