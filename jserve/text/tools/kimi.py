"""Kimi K2: calls between tokens of their own, all of them in CALLS ... CALLS_END.

Each is CALL functions.f:0 ARGUMENTS, the arguments as JSON, CALL_END. The number counts the calls of a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.sections import Sections
from jserve.text.tools.tool import Tool, check_name

CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"
_HEAD = re.compile(r"[^<\s]+")
_ID = re.compile(r"(?:functions\.)?(.+?)(?::\d+)?")


class Kimi:
    """Kimi K2's calls; a section's tokens may be missing around them."""

    name = "kimi_k2"
    markers = (CALLS, CALLS_END, CALL, CALL_END, ARGUMENTS)
    form = CallForm(
        before=f"{CALL}functions.NAME:0{ARGUMENTS}", after=CALL_END, trigger=CALLS, opening=CALLS, closing=CALLS_END
    )

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        yield from _SECTIONS.read(feed, draft)


def _read_head(feed: TextFeed) -> Reading[str]:
    """The name, up to the arguments."""
    head: list[str] = []
    yield from feed.skip_space()
    yield from feed.copy_span(_HEAD, head.append)
    yield from feed.skip_space()
    yield from feed.expect(ARGUMENTS)
    named = _ID.fullmatch("".join(head))
    if named is None:
        raise Malformed
    return check_name(named.group(1))


_SECTIONS = Sections(CALLS, CALLS_END, CALL, CALL_END, _read_head)
