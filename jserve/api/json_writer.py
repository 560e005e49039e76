"""The one writer of JSON in the API: every body and every event of all four protocols is made here.

JSON allows U+2028, U+2029 and U+0085 inside a string, but many readers of lines end a line there (`str.splitlines` of
Python, httpx, the `ollama` package), which cuts an event in two. They are written as escapes, so that no byte of a
body but its own line feeds ends a line.

A body that may be large is made in pieces: it is encoded around holes, which lists are written into batch by batch.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

_encode = msgspec.json.Encoder().encode
_LINE_ENDS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\u0085".encode(), b"\\u0085"),
)
HOLE = f"hole-{secrets.token_hex(16)}"
"""The text that stands where a piece will; no client can guess it."""


def encode(message: Any) -> bytes:
    """`message` as JSON in UTF-8, in which no character of a string ends a line."""
    body = _encode(message)
    if body.isascii():
        return body
    for character, escape in _LINE_ENDS:  # UTF-8 is self-synchronizing: these bytes are nothing else.
        if character in body:
            body = body.replace(character, escape)
    return body


def encode_around_holes(message: Any) -> list[bytes]:
    """The JSON before, between and behind the holes: strings that are `HOLE` and nothing else."""
    return encode(message).split(encode(HOLE))


def list_in_pieces(batches: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The elements of all batches as they stand in one JSON list, without its brackets: a piece for each batch."""
    is_first = True
    for batch in batches:
        elements = encode(batch)[1:-1]
        yield elements if is_first or not elements else b"," + elements
        is_first = is_first and not elements


class JsonResponse(Response):
    """A response whose body is a value as JSON. A number that is not finite is written as null."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(encode(content), status_code, headers)
