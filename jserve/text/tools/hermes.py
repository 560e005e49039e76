"""Hermes, Qwen 2.5 and 3, and others: <tool_call>{"name": "f", "arguments": {...}}</tool_call>, any number."""

from __future__ import annotations

from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_call import Outcome, read_json_call
from jserve.text.tools.tool import Tool

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    """Calls in tags; text around them is content."""

    name = "hermes"
    markers = (BEGIN, END)
    form = CallForm(
        before=f'{BEGIN}\n{{"name": "NAME", "arguments": ', after=f"}}\n{END}", separator="\n", trigger=BEGIN
    )

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        while (yield from feed.copy_until((BEGIN,), draft.content)):
            yield from read_tagged_call(feed, draft)


def read_tagged_call(feed: TextFeed, draft: Draft, begin: str = BEGIN, end: str = END) -> Reading[None]:
    """A call behind its opening tag, with the closing one."""
    feed.record()
    yield from feed.skip_space()
    outcome = yield from read_json_call(feed, draft, begin + feed.recorded())
    if outcome is Outcome.BROKEN:
        yield from feed.copy_until((end,), draft.arguments)
    elif outcome is Outcome.CALL:
        yield from feed.skip_space()
        yield from feed.close(end)
