"""Literals of Python, and of Gemma's formats, turned into JSON while they come.

Python writes 'text', True, None, {'a': 1}, (1, 2); Gemma writes <escape>text<escape> and keys without quotes.
Strings are passed on as they come; numbers and words when they end. JSON itself is understood, too.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from jserve.text.output.feed import Malformed, Reading, TextFeed
from jserve.text.tools.json_text import WORDS

MAX_DEPTH = 64

_BARE = re.compile(r"[^\s,:=()\[\]{}'\"<]+")
_PLAIN = {quote: re.compile(rf"[^\\{quote}]+") for quote in "'\""}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}

Emit = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class LiteralStyle:
    """`quotes` open and close strings without escapes inside; `takes_words`: a bare word is a string."""

    quotes: tuple[str, ...] = ()
    takes_words: bool = False


PYTHON = LiteralStyle()


def copy_literal(feed: TextFeed, emit: Emit, style: LiteralStyle = PYTHON, depth: int = 0) -> Reading[None]:
    """One value as JSON. Raises Malformed, or TextEnded."""
    if depth > MAX_DEPTH:
        raise Malformed
    yield from feed.skip_space()
    if style.quotes and (quote := (yield from feed.try_any(style.quotes))):
        yield from _copy_quoted(feed, emit, quote)
        return
    sign = yield from feed.peek()
    if sign in "'\"":
        yield from _copy_string(feed, emit)
    elif sign in "[(":
        yield from _copy_list(feed, emit, style, depth)
    elif sign == "{":
        yield from copy_dict(feed, emit, style, depth)
    else:
        yield from _copy_bare(feed, emit, style)


def copy_dict(feed: TextFeed, emit: Emit, style: LiteralStyle, depth: int = 0) -> Reading[None]:
    """Members in braces as an object."""
    yield from feed.expect("{")
    emit("{")
    is_first = True
    while True:
        yield from feed.skip_space()
        if (yield from feed.try_any(("}",))):
            emit("}")
            return
        if not is_first:
            yield from feed.expect(",")
            yield from feed.skip_space()
            if (yield from feed.try_any(("}",))):
                emit("}")
                return
        emit("" if is_first else ", ")
        is_first = False
        yield from _copy_key(feed, emit, style)
        yield from feed.skip_space()
        yield from feed.expect(":")
        emit(": ")
        yield from copy_literal(feed, emit, style, depth + 1)


def _copy_key(feed: TextFeed, emit: Emit, style: LiteralStyle) -> Reading[None]:
    if style.quotes and (quote := (yield from feed.try_any(style.quotes))):
        yield from _copy_quoted(feed, emit, quote)
    elif (yield from feed.starts("'\"")):
        yield from _copy_string(feed, emit)
    elif style.quotes:
        key = yield from read_bare(feed)
        emit(json.dumps(key, ensure_ascii=False))
    else:
        raise Malformed


def _copy_list(feed: TextFeed, emit: Emit, style: LiteralStyle, depth: int) -> Reading[None]:
    closer = "]" if (yield from feed.take(1)) == "[" else ")"
    emit("[")
    is_first = True
    while True:
        yield from feed.skip_space()
        if not is_first and not (yield from feed.starts(closer)):
            yield from feed.expect(",")
            yield from feed.skip_space()
        if (yield from feed.try_any((closer,))):
            emit("]")
            return
        emit("" if is_first else ", ")
        is_first = False
        yield from copy_literal(feed, emit, style, depth + 1)


def _copy_quoted(feed: TextFeed, emit: Emit, quote: str) -> Reading[None]:
    """The rest of a string that ends with `quote` and knows no escapes."""
    emit('"')
    if not (yield from feed.copy_until((quote,), lambda text: emit(_escaped(text)))):
        yield from feed.need()  # There is none, which it says.
    emit('"')


def _copy_string(feed: TextFeed, emit: Emit) -> Reading[None]:
    """A string of Python, in one or three quotes."""
    quote = yield from feed.try_any(('"""', "'''", '"', "'"))
    emit('"')
    while True:
        yield from feed.copy_span(_PLAIN[quote[0]], lambda text: emit(_escaped(text)))
        if (yield from feed.peek()) == "\\":
            emit((yield from _unescape(feed)))
        elif (yield from feed.try_any((quote,))):
            emit('"')
            return
        else:
            emit(_escaped((yield from feed.take(1))))


def _unescape(feed: TextFeed) -> Reading[str]:
    yield from feed.take(1)
    sign = yield from feed.take(1)
    if sign in _HEX_DIGITS:
        digits = yield from feed.take(_HEX_DIGITS[sign])
        if not re.fullmatch(r"[0-9a-fA-F]+", digits) or int(digits, 16) > 0x10FFFF:
            raise Malformed(f"\\{sign}{digits}")
        code = int(digits, 16)
        return f"\\u{code:04x}" if code <= 0xFFFF else _escaped(chr(code))
    # An escape that Python does not know is the two characters.
    return _escaped(_ESCAPES.get(sign, sign if sign in "\\'\"" else f"\\{sign}"))


def read_bare(feed: TextFeed) -> Reading[str]:
    """A name, number or word without quotes, which something must follow."""
    parts: list[str] = []
    yield from feed.copy_span(_BARE, parts.append)
    yield from feed.need()
    if not parts:
        raise Malformed
    return "".join(parts)


def _copy_bare(feed: TextFeed, emit: Emit, style: LiteralStyle) -> Reading[None]:
    text = yield from read_bare(feed)
    if text in WORDS:
        emit(WORDS[text])
        return
    try:
        value = ast.literal_eval(text) if text[0] in "-+.0123456789" else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if isinstance(value, (int, float)) and value == value and abs(value) != float("inf"):
        emit(json.dumps(value))
    elif style.takes_words:
        emit(json.dumps(text, ensure_ascii=False))
    else:
        raise Malformed(text)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
