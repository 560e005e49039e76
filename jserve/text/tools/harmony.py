"""gpt-oss: messages with a channel each, <|channel|>analysis<|message|>...<|end|><|start|>assistant...

Analysis is reasoning, final and commentary are content, and a message to functions.f is a call, whose text is
its arguments. Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Malformed, Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_text import copy_json
from jserve.text.tools.tool import Tool, check_name

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
"""What begins reasoning."""
_ENDS = (END, CALL, RETURN, START)
_HEADER_STARTS = (CHANNEL, CONSTRAIN, MESSAGE, "to=", "assistant")
_RECIPIENT = re.compile(r"\bto=(functions\.)?([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class Harmony:
    """Reads reasoning itself, as it stands between the calls."""

    name = "openai"
    markers = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
    form = CallForm(
        before=f"{CHANNEL}commentary to=functions.NAME {CONSTRAIN}json{MESSAGE}",
        also_before=(
            f" to=functions.NAME{CHANNEL}commentary json{MESSAGE}",
            f" to=functions.NAME{CHANNEL}commentary {CONSTRAIN}json{MESSAGE}",
        ),
        after=CALL,
        trigger=f"{CHANNEL}commentary to=",
        is_single=True,
    )

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        while not (yield from feed.at_end()):
            feed.record()
            yield from feed.skip_space()
            yield from feed.try_any((START,))
            start = yield from feed.try_any(_HEADER_STARTS)
            if not start:
                draft.content(feed.recorded())
                yield from feed.copy_until((START,), draft.content)
                continue
            header = [start]
            if start != MESSAGE and not (yield from feed.copy_until((MESSAGE,), header.append)):
                draft.content(feed.recorded())  # The text ended before it became a message.
                return
            feed.recorded()
            yield from _read_message(feed, draft, "".join(header), tools)


def _read_message(feed: TextFeed, draft: Draft, header: str, tools: Mapping[str, Tool]) -> Reading[None]:
    """The text of one message, and what ends it."""
    recipient = _RECIPIENT.search(header)
    channel = _CHANNEL_NAME.search(header)
    if recipient is not None and (recipient[1] or recipient[2] in tools):
        yield from _read_arguments(feed, draft, recipient[2])
    elif channel is not None and channel[1] == "analysis":
        draft.begin_reasoning()
        if (yield from feed.copy_until(_ENDS, draft.reasoning)):
            draft.end_reasoning()
    else:
        draft.break_content()
        yield from feed.copy_until(_ENDS, draft.content)


def _read_arguments(feed: TextFeed, draft: Draft, name: str) -> Reading[None]:
    draft.begin_call(check_name(name))
    yield from feed.skip_space()
    if (yield from feed.at_end()) or (yield from feed.starts("<")):
        draft.arguments("{}")
    else:
        try:
            yield from copy_json(feed, draft.arguments)
        except Malformed as error:
            draft.arguments(error.read)
            yield from feed.copy_until(_ENDS, draft.arguments)
            return
    yield from feed.copy_until(_ENDS, draft.content)
