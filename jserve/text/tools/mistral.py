"""Mistral: [TOOL_CALLS] [{"name": "f", "arguments": {...}}], and newer [TOOL_CALLS]f[ARGS]{...}, repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_call import read_json_list
from jserve.text.tools.json_text import copy_json
from jserve.text.tools.tool import Tool, check_name

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"[^\s\[{]+")


class Mistral:
    """Calls behind a token of their own. `is_array`: constrained calls are written in one JSON array."""

    markers = (CALLS, ARGS, CALL_ID)

    def __init__(self, *, is_array: bool) -> None:
        self.name = "mistral" if is_array else "mistral_args"
        self.form = (
            CallForm(
                before='{"name": "NAME", "arguments": ',
                after="}",
                opening=f"{CALLS}[",
                separator=", ",
                closing="]",
                trigger=CALLS,
            )
            if is_array
            else CallForm(before=f"{CALLS}NAME{ARGS}", after="", trigger=CALLS)
        )

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        marker = yield from feed.copy_until((CALLS,), draft.content)
        while marker:
            feed.record()
            yield from feed.skip_space()
            read = read_json_list if (yield from feed.starts("[{")) else _read_named
            is_broken = yield from read(feed, draft, CALLS + feed.recorded())
            marker = yield from feed.copy_until((CALLS,), draft.arguments if is_broken else draft.content)


def _read_named(feed: TextFeed, draft: Draft, opening: str) -> Reading[bool]:
    """One call by name. True: its arguments are broken, and not over."""
    begun = draft.num_calls
    name: list[str] = []
    feed.record()
    try:
        yield from feed.copy_span(_NAME, name.append)
        if (yield from feed.try_any((CALL_ID,))):
            yield from feed.copy_span(_NAME, lambda _: None)
        yield from feed.try_any((ARGS,))
        yield from feed.skip_space()
        if (yield from feed.peek()) != "{":
            raise Malformed
        draft.begin_call(check_name("".join(name)))
        feed.recorded()
        yield from copy_json(feed, draft.arguments)
    except (Malformed, TextEnded) as error:
        arguments = feed.recorded()
        if draft.num_calls == begun:
            draft.content(opening + arguments)
        else:
            draft.arguments(error.read if isinstance(error, Malformed) else "")
        if isinstance(error, TextEnded):
            raise
        return draft.num_calls > begun
    return False
