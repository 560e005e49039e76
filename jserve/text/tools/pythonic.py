"""Llama 3.2 and 4, Gemma 3 with a prompt, and others: [f(a=1, b="x"), g()] is the whole message.

The list may stand between <|python_start|> and <|python_end|>, or in a ```tool_code block. Nothing else marks
a call, so outside of these only a message that begins with the name of an offered tool in a list is one.
Constrained calls are written as a list of JSON objects, [{"name": "f", "parameters": {...}}].
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_call import Outcome, read_json_call
from jserve.text.tools.literal_text import copy_literal, read_bare
from jserve.text.tools.tool import Tool, check_name

START, END, FENCE = "<|python_start|>", "<|python_end|>", "```tool_code"


_MARKS = ((START, END), (FENCE, "```"))
_LIST_FORM = CallForm(
    before='{"name": "NAME", "parameters": ', after="}", opening="[", separator=", ", closing="]", marks=_MARKS
)
_OBJECT_FORM = CallForm(before='{"name": "NAME", "parameters": ', after="}", separator="; ", marks=_MARKS)


class Pythonic:
    """Calls as Python writes them. `asks_json`: the template asks for JSON, as Llama 4's own does."""

    markers = (START, END)

    def __init__(self, *, asks_json: bool) -> None:
        self.name = "llama4_json" if asks_json else "pythonic"
        self.form = _OBJECT_FORM if asks_json else _LIST_FORM

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        feed.record()
        yield from feed.skip_space()
        opening: str | None = feed.recorded() + (yield from feed.try_any((START, FENCE)))
        while opening is not None:
            yield from _read_calls(feed, draft, opening, tools)
            opening = (yield from feed.copy_until((START, FENCE), draft.content)) or None


def _read_calls(feed: TextFeed, draft: Draft, opening: str, tools: Mapping[str, Tool]) -> Reading[None]:
    """The calls behind an opening, in brackets or (behind a marker) without, and the closing marker."""
    is_marked = opening.endswith((START, FENCE))
    feed.record()
    yield from feed.skip_space()
    if opening.endswith(START) and (yield from feed.try_any((END,))):  # Llama 4's template puts content in between.
        yield from feed.skip_space()
    has_bracket = bool((yield from feed.try_any(("[",))))
    opening += feed.recorded()
    if not (has_bracket or is_marked or (yield from feed.starts("{"))):
        draft.content(opening)
        return
    while True:
        if not (yield from _read_call(feed, draft, opening, tools)):
            return
        feed.record()
        yield from feed.skip_space()
        separator = yield from feed.try_any((",", ";"))
        yield from feed.skip_space()
        opening = feed.recorded()
        if (yield from feed.starts("]`<")) or (yield from feed.at_end()) or not (separator or not has_bracket):
            break
    yield from feed.try_any(("]",))
    yield from feed.skip_space()
    yield from feed.try_any((END, "```"))


def _read_call(feed: TextFeed, draft: Draft, opening: str, tools: Mapping[str, Tool]) -> Reading[bool]:
    """One call. False: it was none and became content, or its arguments are broken."""
    if (yield from feed.starts("{")):
        outcome = yield from read_json_call(feed, draft, opening, tools.__contains__)
        return outcome is Outcome.CALL
    begun = draft.num_calls
    feed.record()
    try:
        name = check_name((yield from read_bare(feed)))
        yield from feed.skip_space()
        yield from feed.expect("(")
        if name not in tools:
            raise Malformed
        draft.begin_call(name)
        feed.recorded()
        draft.arguments("{")
        yield from _copy_arguments(feed, draft)
    except (Malformed, TextEnded) as error:
        arguments = feed.recorded()
        if draft.num_calls == begun:
            draft.content(opening + arguments)
        if isinstance(error, TextEnded):
            raise
        if draft.num_calls > begun:
            draft.arguments(error.read)
            yield from feed.copy_until((END,), draft.arguments)
        return False
    return True


def _copy_arguments(feed: TextFeed, draft: Draft) -> Reading[None]:
    is_first = True
    while True:
        yield from feed.skip_space()
        if (yield from feed.try_any((")",))):
            draft.arguments("}")
            return
        if not is_first:
            yield from feed.expect(",")
            yield from feed.skip_space()
            if (yield from feed.try_any((")",))):
                draft.arguments("}")
                return
        key = yield from read_bare(feed)
        yield from feed.skip_space()
        yield from feed.expect("=")
        draft.arguments(f"{'' if is_first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
        is_first = False
        yield from copy_literal(feed, draft.arguments)
