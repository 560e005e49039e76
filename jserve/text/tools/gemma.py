"""FunctionGemma and Gemma 4: a call is call:f{a:"x",n:1} between tokens of its own, strings in quotes of theirs.

FunctionGemma: <start_function_call>call:f{a:<escape>x<escape>}<end_function_call>. Gemma 4:
<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>. JSON in the braces is understood, and is what constrained calls
are written in. (Gemma 3's own template knows no tools.)
"""

from __future__ import annotations

from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.literal_text import LiteralStyle, copy_dict, read_bare
from jserve.text.tools.tool import Tool, check_name


class Gemma:
    """Calls between `begin` and `end`; `quote` opens and closes strings."""

    def __init__(self, name: str, begin: str, end: str, quote: str) -> None:
        self.name = name
        self.markers = (begin, end, quote)
        self.form = CallForm(before=f"{begin}call:NAME", after=end, trigger=begin)
        self._style = LiteralStyle((quote,), takes_words=True)

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        begin, end, _ = self.markers
        while (yield from feed.copy_until((begin,), draft.content)):
            begun = draft.num_calls
            feed.record()
            try:
                yield from self._read_call(feed, draft)
                yield from feed.skip_space()
                yield from feed.try_any((end,))
            except (Malformed, TextEnded) as error:
                arguments = feed.recorded()
                if draft.num_calls == begun:
                    draft.content(begin + arguments)
                if isinstance(error, TextEnded):
                    raise
                if draft.num_calls > begun:
                    draft.arguments(error.read)
                    yield from feed.copy_until((end,), draft.arguments)

    def _read_call(self, feed: TextFeed, draft: Draft) -> Reading[None]:
        yield from feed.skip_space()
        yield from feed.expect("call:")
        name = check_name((yield from read_bare(feed)))
        if (yield from feed.peek()) != "{":
            raise Malformed
        draft.begin_call(name)
        feed.recorded()
        yield from copy_dict(feed, draft.arguments, self._style)


def function_gemma() -> Gemma:
    return Gemma("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>")


def gemma4() -> Gemma:
    return Gemma("gemma4", "<|tool_call>", "<tool_call|>", '<|"|>')
