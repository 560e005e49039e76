"""The lines of a batch's input: read a few at a time, and checked before the first is answered."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jserve.errors import RequestError

MAX_LINES = 50_000
MAX_SHOWN_ERRORS = 20
_CHUNK = 64
"""Lines that are in memory at once."""


class Line(msgspec.Struct, frozen=True):
    """One request of a batch, as OpenAI's clients write it."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line as it stands in the file. Numbers begin at 1."""

    number: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line."""

    number: int
    code: str
    message: str

    def described(self) -> dict[str, Any]:
        """OpenAI's error of a batch."""
        return {"code": self.code, "message": self.message, "line": self.number, "param": None}


async def read_lines(path: Path, most_bytes: int) -> AsyncIterator[list[NumberedLine]]:
    """The lines of a file, a few at a time, without empty ones. Raises RequestError for one of over `most_bytes`."""
    number = 0
    with path.open("rb") as file:

        def chunk() -> tuple[list[NumberedLine], int]:
            lines, read = [], 0
            while read < _CHUNK and (raw := file.readline(most_bytes + 1)):
                read += 1
                if len(raw) > most_bytes:
                    raise RequestError(f"line {number + read} is longer than {most_bytes} bytes (--max-request-bytes)")
                if raw.strip():
                    lines.append(NumberedLine(number + read, raw.strip()))
            return lines, read

        while True:
            lines, read = await asyncio.to_thread(chunk)
            if not read:
                return
            number += read
            yield lines


def parsed(line: NumberedLine, endpoint: str | None, urls: frozenset[str]) -> Line:
    """The request of a line. Raises RequestError saying what is wrong.

    All lines are for `endpoint`, or where that is None for any of `urls`.
    """
    try:
        request = msgspec.json.decode(line.raw, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"this is no request of a batch: {error}") from error
    if request.method != "POST":
        raise RequestError(f"method is {request.method!r:.20} but must be 'POST'")
    if request.url not in ({endpoint} if endpoint is not None else urls):
        wanted = endpoint if endpoint is not None else f"one of {', '.join(sorted(urls))}"
        raise RequestError(f"url is {request.url!r:.80} but must be {wanted}")
    if request.body.get("stream"):
        raise RequestError("an answer in a batch cannot be a stream; leave `stream` out")
    return request


@dataclass(slots=True)
class CheckedInput:
    """What a check of all lines says."""

    num_lines: int
    errors: list[LineError]


async def check_lines(path: Path, endpoint: str | None, urls: frozenset[str], most_bytes: int) -> CheckedInput:
    """Check all lines: each is a request, and no `custom_id` is there twice."""
    errors: list[LineError] = []
    seen: set[bytes] = set()  # 16 bytes of each, so that long ids take no more
    count = 0
    try:
        async for lines in read_lines(path, most_bytes):
            for line in lines:
                count += 1
                errors += _errors_of(line, endpoint, urls, seen)
            if count > MAX_LINES:
                errors.append(
                    LineError(lines[-1].number, "too_many_requests", f"a batch has at most {MAX_LINES} lines")
                )
            if len(errors) >= MAX_SHOWN_ERRORS or count > MAX_LINES:
                break
    except RequestError as error:
        errors.append(LineError(count + 1, "line_too_long", str(error)))
    if not count and not errors:
        errors.append(LineError(1, "empty_file", "the file holds no line"))
    return CheckedInput(count, errors[:MAX_SHOWN_ERRORS])


def _errors_of(line: NumberedLine, endpoint: str | None, urls: frozenset[str], seen: set[bytes]) -> Iterator[LineError]:
    try:
        request = parsed(line, endpoint, urls)
    except RequestError as error:
        yield LineError(line.number, "invalid_request", str(error))
        return
    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        yield LineError(line.number, "duplicate_custom_id", f"custom_id {request.custom_id!r:.80} is there twice")
    seen.add(digest)
