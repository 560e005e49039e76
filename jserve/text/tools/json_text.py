"""JSON, copied while it comes and checked at every character.

What is copied is valid JSON wherever it is complete. Two habits of models are put right: control characters
inside strings are escaped, and Python's True, False and None become JSON's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from jserve.text.output.feed import Malformed, Reading, TextFeed

MAX_DEPTH = 512
"""Deeper arrays and objects are malformed: nobody's parser reads them back."""

WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER_CHARACTERS = re.compile(r"[-+.0-9eE]+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_LETTERS = re.compile(r"[A-Za-z]+")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_SPACE = re.compile(r"[ \t\r\n]+")
_ESCAPES = '"\\/bfnrt'

Emit = Callable[[str], object]


def copy_json(feed: TextFeed, emit: Emit) -> Reading[None]:
    """Copy one value. Raises Malformed at what is not JSON, TextEnded where the text ends inside it."""
    closers: list[str] = []
    while True:
        opened = yield from _copy_start(feed, emit, closers)
        while closers and not opened:  # A value is complete.
            sign = yield from _after_space(feed, emit)
            if sign == closers[-1]:
                yield from _copy_char(feed, emit)
                closers.pop()
                continue
            if sign != ",":
                raise Malformed
            yield from _copy_char(feed, emit)
            if closers[-1] == "}":
                yield from _copy_key(feed, emit)
            break
        if not closers:
            return


def _copy_start(feed: TextFeed, emit: Emit, closers: list[str]) -> Reading[bool]:
    """Copy a scalar, or the beginning of an array or object: up to where a value stands. False: it is complete."""
    sign = yield from _after_space(feed, emit)
    if sign not in "{[":
        yield from _copy_scalar(feed, emit, sign)
        return False
    if len(closers) == MAX_DEPTH:
        raise Malformed
    yield from _copy_char(feed, emit)
    closer = "}" if sign == "{" else "]"
    if (yield from _after_space(feed, emit)) == closer:
        yield from _copy_char(feed, emit)
        return False
    closers.append(closer)
    if closer == "}":
        yield from _copy_key(feed, emit)
    return True


def _copy_key(feed: TextFeed, emit: Emit) -> Reading[None]:
    if (yield from _after_space(feed, emit)) != '"':
        raise Malformed
    yield from copy_string(feed, emit)
    if (yield from _after_space(feed, emit)) != ":":
        raise Malformed
    yield from _copy_char(feed, emit)


def _copy_scalar(feed: TextFeed, emit: Emit, sign: str) -> Reading[None]:
    if sign == '"':
        yield from copy_string(feed, emit)
    elif sign in "-0123456789":
        digits: list[str] = []
        yield from feed.copy_span(_NUMBER_CHARACTERS, digits.append)
        emit("".join(digits))
        if not _NUMBER.fullmatch("".join(digits)):
            raise Malformed
    else:
        letters: list[str] = []
        yield from feed.copy_span(_LETTERS, letters.append)
        text = "".join(letters)
        if text not in WORDS:
            raise Malformed(text)
        emit(WORDS[text])


def copy_string(feed: TextFeed, emit: Emit) -> Reading[None]:
    """Copy a string with its quotes."""
    yield from _copy_char(feed, emit)
    while True:
        yield from feed.copy_span(_PLAIN, emit)
        sign = yield from feed.peek()
        if sign == '"':
            yield from _copy_char(feed, emit)
            return
        yield from feed.take(1)
        emit((yield from _escape(feed)) if sign == "\\" else json.dumps(sign)[1:-1])


def _escape(feed: TextFeed) -> Reading[str]:
    sign = yield from feed.take(1)
    if sign == "u":
        digits = yield from feed.take(4)
        if not _HEX.fullmatch(digits):
            raise Malformed(f"\\u{digits}")
        return f"\\u{digits}"
    if sign not in _ESCAPES:
        raise Malformed(f"\\{sign}")
    return f"\\{sign}"


def read_json(feed: TextFeed) -> Reading[str]:
    """The text of one value."""
    parts: list[str] = []
    yield from copy_json(feed, parts.append)
    return "".join(parts)


def read_string(feed: TextFeed) -> Reading[str]:
    """The characters of a string. Raises Malformed where they are no text (half of a surrogate pair)."""
    parts: list[str] = []
    if (yield from feed.peek()) != '"':
        raise Malformed
    yield from copy_string(feed, parts.append)
    text: str = json.loads("".join(parts))
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise Malformed
    return text


def _copy_char(feed: TextFeed, emit: Emit) -> Reading[None]:
    emit((yield from feed.take(1)))


def _after_space(feed: TextFeed, emit: Emit) -> Reading[str]:
    """The next character behind white space, which is copied."""
    yield from feed.copy_span(_SPACE, emit)
    return (yield from feed.peek())
