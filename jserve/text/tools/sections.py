"""Calls between tokens of their own, all of them in a section: what DeepSeek's and Kimi's formats have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.json_text import copy_json


@dataclass(frozen=True, slots=True)
class Sections:
    """The tokens around a section and around a call in it; a section's may be missing."""

    begin: str
    end: str
    call: str
    call_end: str
    read_head: Callable[[TextFeed], Reading[str]]
    """Reads a call up to its arguments, which are JSON, and returns the name. Raises Malformed."""
    fence: tuple[str, ...] = ()
    """What may stand behind the arguments."""

    def read(self, feed: TextFeed, draft: Draft) -> Reading[None]:
        """Read a message."""
        while opening := (yield from feed.copy_until((self.begin, self.call), draft.content)):
            if opening == self.begin:
                feed.record()
                yield from feed.skip_space()
                yield from feed.try_any((self.call,))
                opening += feed.recorded()
            if not opening.endswith(self.call):
                draft.content(opening)
                continue
            yield from self._read_call(feed, draft, opening)
            yield from feed.skip_space()
            yield from feed.try_any((self.end,))

    def _read_call(self, feed: TextFeed, draft: Draft, opening: str) -> Reading[None]:
        begun = draft.num_calls
        feed.record()
        try:
            draft.begin_call((yield from self.read_head(feed)))
            feed.recorded()
            yield from feed.skip_space()
            yield from copy_json(feed, draft.arguments)
            yield from feed.skip_space()
            if self.fence:
                yield from feed.try_any(self.fence)
                yield from feed.skip_space()
            yield from feed.try_any((self.call_end,))
        except (Malformed, TextEnded) as error:
            arguments = feed.recorded()
            if draft.num_calls == begun:
                draft.content(opening + arguments)
            if isinstance(error, TextEnded):
                raise
            if draft.num_calls > begun:
                draft.arguments(error.read)
                yield from feed.copy_until((self.call_end,), draft.arguments)
