"""DeepSeek: calls between tokens of their own, all of them in CALLS ... CALLS_END.

V3 and R1: CALL function SEPARATOR f, a line break, ```json, the arguments, ```, CALL_END.
V3.1: CALL f SEPARATOR, the arguments, CALL_END. Either reader understands both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.sections import Sections
from jserve.text.tools.tool import Tool, check_name

_BAR = "\uff5c"
CALLS, CALLS_END = f"<{_BAR}tool▁calls▁begin{_BAR}>", f"<{_BAR}tool▁calls▁end{_BAR}>"
CALL, CALL_END = f"<{_BAR}tool▁call▁begin{_BAR}>", f"<{_BAR}tool▁call▁end{_BAR}>"
SEPARATOR = f"<{_BAR}tool▁sep{_BAR}>"
_NAME = re.compile(r"[^<\s]+")


class DeepSeek:
    """Calls of V3.1, or of V3 where `has_type`: "function" stands before the name, the arguments in a block."""

    markers = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def __init__(self, name: str, *, has_type: bool) -> None:
        self.name = name
        before = f"{CALL}function{SEPARATOR}NAME\n```json\n" if has_type else f"{CALL}NAME{SEPARATOR}"
        self.form = CallForm(
            before=before,
            after=f"\n```{CALL_END}" if has_type else CALL_END,
            trigger=CALLS,
            opening=CALLS,
            separator="\n" if has_type else "",
            closing=CALLS_END,
        )

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        yield from _SECTIONS.read(feed, draft)


def _read_head(feed: TextFeed) -> Reading[str]:
    """The name, up to the arguments."""
    name: list[str] = []
    yield from feed.skip_space()
    yield from feed.copy_span(_NAME, name.append)
    yield from feed.skip_space()
    yield from feed.expect(SEPARATOR)
    yield from feed.skip_space()
    if "".join(name) == "function" and not (yield from feed.starts("{")):
        name = []
        yield from feed.copy_span(_NAME, name.append)
        yield from feed.skip_space()
        yield from feed.try_any(("```json", "```"))
        yield from feed.skip_space()
    if (yield from feed.peek()) != "{":
        raise Malformed
    return check_name("".join(name))


_SECTIONS = Sections(CALLS, CALLS_END, CALL, CALL_END, _read_head, fence=("```",))
