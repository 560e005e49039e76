"""Text that arrives in pieces, read as if it were there at once.

A format's reader is a generator that is written straight through; wherever it needs text that has not come
yet it yields. What it decides depends on the text alone and never on how the text was cut, since every
question here (does this marker follow?) waits until the answer is certain. Each character costs the same,
however long the text: only what may still become a marker is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")

Reading: TypeAlias = Generator[None, None, _T]
"""A reader at work: it yields where it waits for text, and returns what it made of it."""

_SPACE = re.compile(r"[ \t\r\n]+")


class TextEnded(Exception):
    """A reader wants more text and there is none."""


class Malformed(Exception):
    """The text is not what the format says it must be. The feed stands at what does not fit.

    `read` is text that was read and not passed on.
    """

    def __init__(self, read: str = "") -> None:
        super().__init__(read)
        self.read = read


class TextFeed:
    """The text between what was read and what has come."""

    __slots__ = ("_is_over", "_pos", "_recorded", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._pos = 0
        self._is_over = False
        self._recorded: list[str] | None = None

    def push(self, text: str) -> None:
        """More text has come."""
        self._text = self._text[self._pos :] + text
        self._pos = 0

    def end(self) -> None:
        """All text has come."""
        self._is_over = True

    def record(self) -> None:
        """From now on remember what is read, so that it can be given back with `recorded`."""
        self._recorded = []

    def recorded(self) -> str:
        """What was read since `record`, which ends."""
        text, self._recorded = "".join(self._recorded or ()), None
        return text

    def rest(self) -> str:
        """Take all that is there."""
        return self._take(len(self._text) - self._pos)

    def need(self) -> Reading[None]:
        """Wait for a character. Raises TextEnded where there is none."""
        while self._pos == len(self._text):
            if self._is_over:
                raise TextEnded
            yield

    def at_end(self) -> Reading[bool]:
        """Wait for a character or the end; returns whether it is the end."""
        while self._pos == len(self._text) and not self._is_over:
            yield
        return self._pos == len(self._text)

    def starts(self, characters: str) -> Reading[bool]:
        """Whether the text goes on with one of `characters`."""
        return not (yield from self.at_end()) and self._text[self._pos] in characters

    def peek(self) -> Reading[str]:
        """The next character, which stays. Raises TextEnded."""
        yield from self.need()
        return self._text[self._pos]

    def take(self, count: int) -> Reading[str]:
        """The next `count` characters. Raises TextEnded where there are fewer."""
        while len(self._text) - self._pos < count:
            if self._is_over:
                raise TextEnded
            yield
        return self._take(count)

    def skip_space(self) -> Reading[None]:
        """Skip white space, up to other text (or the end)."""
        while not (yield from self.at_end()):
            match = _SPACE.match(self._text, self._pos)
            if match is None:
                return
            self._take(match.end() - self._pos)

    def try_any(self, markers: Sequence[str]) -> Reading[str]:
        """Take the first of `markers` that the text goes on with and return it, "" for none.

        Of two markers, one the beginning of the other, the longer must come first.
        """
        while True:
            there = self._text[self._pos : self._pos + max(map(len, markers))]
            for marker in markers:
                if there.startswith(marker):
                    self._take(len(marker))
                    return marker
                if not self._is_over and len(there) < len(marker) and marker.startswith(there):
                    break  # It may become this one, which comes before those that are there.
            else:
                return ""
            yield

    def close(self, marker: str) -> Reading[None]:
        """Take `marker`, or as much of it as there is where the text was cut inside it."""
        taken = yield from self.try_any((marker,))
        if not taken and self._is_over and marker.startswith(self._text[self._pos :]):
            self.rest()

    def expect(self, marker: str) -> Reading[None]:
        """Take `marker`. Raises Malformed, or TextEnded where the text ends inside it."""
        if (yield from self.try_any((marker,))):
            return
        if marker.startswith(self._text[self._pos :]) and self._is_over:
            raise TextEnded
        raise Malformed

    def copy_span(self, span: re.Pattern[str], emit: Callable[[str], object]) -> Reading[None]:
        """Pass on text as long as its characters fit `span`, which is `[...]+`."""
        while not (yield from self.at_end()):
            match = span.match(self._text, self._pos)
            if match is None:
                return
            emit(self._take(match.end() - self._pos))

    def copy_until(self, markers: Sequence[str], emit: Callable[[str], object]) -> Reading[str]:
        """Pass text on until the first of `markers`, which is taken and returned; "" at the text's end.

        None of the markers may be the beginning of another.
        """
        while True:
            places = [(at, marker) for marker in markers if (at := self._text.find(marker, self._pos)) >= 0]
            cut = len(self._text)
            if not self._is_over:
                cut -= max((_overlap(self._text, self._pos, marker) for marker in markers), default=0)
            if places and min(places)[0] <= cut:
                at, marker = min(places)
                self._emit_up_to(at, emit)
                self._take(len(marker))
                return marker
            self._emit_up_to(cut, emit)
            if self._is_over:
                return ""
            yield

    def _emit_up_to(self, end: int, emit: Callable[[str], object]) -> None:
        if end > self._pos:
            emit(self._take(end - self._pos))

    def _take(self, count: int) -> str:
        taken = self._text[self._pos : self._pos + count]
        self._pos += count
        if self._recorded is not None:
            self._recorded.append(taken)
        return taken


def _overlap(text: str, begin: int, marker: str) -> int:
    """Length of the longest end of `text` (from `begin` on) with which `marker`, not yet complete, begins."""
    start = text.find(marker[0], max(begin, len(text) - len(marker) + 1))
    while start >= 0:
        if marker.startswith(text[start:]):
            return len(text) - start
        start = text.find(marker[0], start + 1)
    return 0
