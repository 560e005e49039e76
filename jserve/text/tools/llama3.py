"""Llama 3.1 to 3.3: {"name": "f", "parameters": {...}} is the whole message; several are separated by ";".

A message may begin with <|python_tag|>. Nothing marks a call, so only a message that begins like one is one,
and only with the name of a tool that was offered.
"""

from __future__ import annotations

from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_call import Outcome, read_json_call
from jserve.text.tools.tool import Tool

TAG = "<|python_tag|>"


class Llama3:
    """Calls as bare JSON."""

    name = "llama3_json"
    markers = (TAG,)
    form = CallForm(before='{"name": "NAME", "parameters": ', after="}", separator="; ", marks=((TAG, ""),))

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        before = ""
        while True:
            feed.record()
            yield from feed.skip_space()
            before += feed.recorded()
            tag = ""
            if (yield from feed.starts("{")):
                outcome = yield from read_json_call(feed, draft, before, tools.__contains__)
                if outcome is Outcome.CALL:
                    before = yield from _separator(feed)
                    continue
                if outcome is Outcome.BROKEN:
                    tag = yield from feed.copy_until((TAG,), draft.arguments)
            else:
                draft.content(before)
            if not tag and not (yield from feed.copy_until((TAG,), draft.content)):
                return
            before = TAG


def _separator(feed: TextFeed) -> Reading[str]:
    feed.record()
    yield from feed.skip_space()
    yield from feed.try_any((";", ",", TAG))
    return feed.recorded()
