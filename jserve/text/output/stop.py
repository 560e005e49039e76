"""Stop strings, matched on text that arrives in pieces.

What is sent can't be taken back, so the end of the text that may still become a stop string is held back, and
no more than that: at most one character less than the longest stop string.
"""

from __future__ import annotations

from typing import NamedTuple


class StopResult(NamedTuple):
    """`emit` is text to send now; `matched` is the stop string that ended the text, or None."""

    emit: str
    matched: str | None = None


class StopMatcher:
    """One sequence's stop strings.

    The stop string that is complete first ends the text, as if it came one character at a time; of several
    complete at one character the longest, so that no part of a stop string is sent. With `include` the stop
    string itself is. However the text is cut into pieces, what is sent in all is the same.
    """

    def __init__(self, stops: tuple[str, ...], include: bool) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._include = include
        self._held = ""
        self._is_over = False

    def push(self, text: str) -> StopResult:
        """Add text. After a match there is no more: further text is dropped."""
        if self._is_over:
            return StopResult("")
        if not self._stops:
            return StopResult(text)
        # Held text is the beginning of every stop string that can still begin in earlier text.
        text = self._held + text
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            end, _, matched = min(matches)
            self._held, self._is_over = "", True
            return StopResult(text[: end if self._include else end - len(matched)], matched)
        cut = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[cut:]
        return StopResult(text[:cut])

    def flush(self) -> str:
        """The text that was held back: the sequence ended, so it became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop`, not yet complete, begins."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
