"""A call written as one JSON object, in whatever markers: {"name": "f", "arguments": {...}}.

`parameters` is another name of the arguments, and `tool_name` of the name; their order and further members do not
matter. Arguments may be missing (none), null (none), or an object inside a string.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.json_text import copy_json, read_json, read_string
from jserve.text.tools.tool import check_name

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_BEFORE_NAME = 32
"""Members that may stand before the name."""


class Outcome(enum.Enum):
    """What became of a text that begins like a call."""

    CALL = "call"
    TEXT = "text"
    """It is none, and was given back as content."""
    BROKEN = "broken"
    """A call whose arguments are not JSON; they end where the feed stands."""


@dataclass(slots=True)
class _Call:
    draft: Draft
    is_name: Callable[[str], bool]
    name: str = ""
    arguments: str | None = None
    """Arguments that came before the name."""
    is_begun: bool = False

    def begin(self, feed: TextFeed) -> None:
        self.is_begun = True
        self.draft.begin_call(self.name)
        feed.recorded()


def read_json_call(
    feed: TextFeed, draft: Draft, opening: str, is_name: Callable[[str], bool] = lambda _: True
) -> Reading[Outcome]:
    """One call. What turns out not to be one becomes content, with `opening`, the text before it.

    Arguments are passed on as they come, once the name is known. Raises TextEnded where the text ends in it.
    """
    call = _Call(draft, is_name)
    feed.record()
    try:
        yield from _read_members(feed, call)
    except (Malformed, TextEnded) as error:
        arguments = feed.recorded()
        if not call.is_begun:
            draft.content(opening + arguments)
        if isinstance(error, TextEnded):
            raise
        draft.arguments(error.read) if call.is_begun else None
        return Outcome.BROKEN if call.is_begun else Outcome.TEXT
    return Outcome.CALL


def read_json_list(feed: TextFeed, draft: Draft, opening: str) -> Reading[bool]:
    """Calls in brackets, or one without. What is none becomes content, with `opening`.

    True: the last one's arguments are broken, and not over.
    """
    opening += yield from feed.try_any(("[",))
    while True:
        feed.record()
        yield from feed.skip_space()
        opening += feed.recorded()
        outcome = yield from read_json_call(feed, draft, opening)
        if outcome is not Outcome.CALL:
            return outcome is Outcome.BROKEN
        yield from feed.skip_space()
        opening = yield from feed.try_any((",", "]"))
        if opening != ",":
            return False


def _read_members(feed: TextFeed, call: _Call) -> Reading[None]:
    yield from feed.expect("{")
    for number in range(_BEFORE_NAME):
        yield from feed.skip_space()
        if (yield from feed.try_any(("}",))):
            break
        if number:
            yield from feed.expect(",")
            yield from feed.skip_space()
        key = yield from read_string(feed)
        yield from feed.skip_space()
        yield from feed.expect(":")
        yield from feed.skip_space()
        if key in _NAMES:
            call.name = check_name((yield from read_string(feed)))
            if not call.is_name(call.name):
                raise Malformed
        elif key in _ARGUMENTS:
            yield from _read_arguments(feed, call)
        else:
            yield from read_json(feed)
        if call.name and call.arguments is not None:
            call.begin(feed)
            call.draft.arguments(call.arguments)
        if call.is_begun:
            yield from _skip_rest(feed, call.draft)
            return
    if not call.name:
        raise Malformed
    call.begin(feed)
    call.draft.arguments("{}")


def _read_arguments(feed: TextFeed, call: _Call) -> Reading[None]:
    sign = yield from feed.peek()
    if sign == "{" and call.name:
        call.begin(feed)
        yield from copy_json(feed, call.draft.arguments)
    elif sign == "{":
        call.arguments = yield from read_json(feed)
    elif sign == '"':
        call.arguments = _object_in_string((yield from read_string(feed)))
    else:
        yield from feed.expect("null")
        call.arguments = "{}"


def _object_in_string(text: str) -> str:
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise Malformed
    return text or "{}"


def _skip_rest(feed: TextFeed, draft: Draft) -> Reading[None]:
    """Further members, and the end. What is neither is left, and what of it was read is content."""
    feed.record()
    try:
        yield from feed.skip_space()
        while (yield from feed.try_any((",",))):
            yield from feed.skip_space()
            yield from read_string(feed)
            yield from feed.skip_space()
            yield from feed.expect(":")
            yield from feed.skip_space()
            yield from read_json(feed)
            yield from feed.skip_space()
        yield from feed.expect("}")
        yield from feed.copy_span(_EXTRA, lambda _: None)
        feed.recorded()
    except Malformed:
        draft.content(feed.recorded())


_EXTRA = re.compile(r"[}]+")
"""Models that lose count write a brace too many."""
