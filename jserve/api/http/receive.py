"""Receiving a body within limits: its size, the pace at which it comes, and the work its JSON makes.

Parsing holds Python's lock, in whichever thread it runs, so what would take long is refused before.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

from jserve.api.access.incoming_bodies import IncomingBody
from jserve.api.context import ServerContext
from jserve.api.errors import ClientGoneError
from jserve.errors import RequestError

MIN_BYTES_PER_S = 500
"""The lowest rate of a body, over each `--receive-timeout` seconds (as Apache's `MinRate`)."""
MAX_JSON_WEIGHT = 1_000_000
"""Parsing 1 takes about 60 ns: an element of an array weighs 1, an array or object 4, a field of an object 8."""
_PIECE = 1 << 20
_CLOSE = {"Connection": "close"}


@asynccontextmanager
async def received_body(request: Request, server: ServerContext) -> AsyncIterator[bytes]:
    """The bytes of the body, which count as memory in use until the block ends.

    Raises HTTPException (408, 413, 415, 503) or ClientGoneError.
    """
    limit = server.settings.max_request_bytes
    _check_head(request, limit)
    bodies = server.bodies
    deadline = asyncio.timeout(server.settings.receive_timeout_s)
    body = bodies.open(deadline)
    try:
        try:
            async with deadline:
                await _receive(request, server, body, deadline)
        except ClientDisconnect:
            raise ClientGoneError("the client left while it sent its request") from None
        except TimeoutError:
            if body.is_given_up:
                message = "too many large requests are being sent to this server at once; try again in a moment"
                raise HTTPException(503, message, headers=_CLOSE | {"Retry-After": "1"}) from None
            raise HTTPException(408, "the body of the request did not arrive in time", headers=_CLOSE) from None
        yield bodies.complete(body)
    finally:
        bodies.close(body)


async def received_parts(request: Request, limit: int, timeout_s: float, flag: str) -> AsyncIterator[bytes]:
    """The parts of a body that is not kept in memory. `flag` sets `limit`, in bytes.

    Raises HTTPException (408, 413) or ClientGoneError.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit, flag)
    clock = asyncio.get_running_loop().time
    parts = request.stream()
    size = 0
    enough = step = MIN_BYTES_PER_S * timeout_s
    deadline = clock() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise ClientGoneError("the client left while it sent its file") from None
        except TimeoutError:
            raise HTTPException(408, "the body of the request did not arrive in time", headers=_CLOSE) from None
        size += len(part)
        if size > limit:
            raise _too_large(limit, flag)
        if size >= enough:
            enough, deadline = size + step, clock() + timeout_s
        yield part


async def _receive(request: Request, server: ServerContext, body: IncomingBody, deadline: asyncio.Timeout) -> None:
    """Receive all parts of the body. Each time that enough has come, the timeout starts again."""
    limit, timeout_s = server.settings.max_request_bytes, server.settings.receive_timeout_s
    clock = asyncio.get_running_loop().time
    size = 0
    enough = step = MIN_BYTES_PER_S * timeout_s
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if body.is_given_up:
            continue  # The timeout, which has been moved to now, ends this.
        server.bodies.add(body, part)
        if size >= enough and not body.is_given_up:
            enough = size + step
            deadline.reschedule(clock() + timeout_s)


def _check_head(request: Request, limit: int) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(
            415, f"Content-Encoding '{encoding[:40]}' is not supported; send the body as plain JSON", headers=_CLOSE
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)


def _too_large(limit: int, flag: str = "--max-request-bytes") -> HTTPException:
    message = f"the body is larger than {limit} bytes, the most that this server takes ({flag})"
    return HTTPException(413, message, headers=_CLOSE)


def check_json_weight(raw: bytes) -> None:
    """Raise RequestError where parsing `raw` would hold up everybody else. Slow in the worst case: use a thread."""
    weight = 0
    for start in range(0, len(raw), _PIECE):
        weight += _weight(raw, start, start + _PIECE)
    if weight > MAX_JSON_WEIGHT and _exact_weight_exceeds(raw):
        raise RequestError(
            f"the body holds too many JSON values: arrays of {MAX_JSON_WEIGHT} elements, or objects with "
            f"{MAX_JSON_WEIGHT // 8} fields, are the most; send several requests instead"
        )


def _weight(raw: bytes, start: int, end: int) -> int:
    commas, colons = raw.count(b",", start, end), raw.count(b":", start, end)
    return commas + 8 * colons + 4 * (raw.count(b"[", start, end) + raw.count(b"{", start, end))


def _exact_weight_exceeds(raw: bytes) -> bool:
    """Whether the weight is too much without what stands inside strings, such as the commas of a text."""
    weight = position = 0
    while weight <= MAX_JSON_WEIGHT:
        quote = raw.find(b'"', position)
        if quote < 0:
            return weight + _weight(raw, position, len(raw)) > MAX_JSON_WEIGHT
        weight += _weight(raw, position, quote)
        end = raw.find(b'"', quote + 1)
        while end >= 0 and _is_escaped(raw, end):
            weight += 1  # Text is seldom full of quotation marks; a body of nothing else is bounded by this.
            end = raw.find(b'"', end + 1)
        if end < 0:
            return False  # Not JSON, which parsing finds out at once.
        position = end + 1
    return True


def _is_escaped(raw: bytes, quote: int) -> bool:
    """Whether an odd number of backslashes stands before it."""
    start = quote
    while start and raw[start - 1] == 0x5C:
        start -= 1
    return (quote - start) % 2 == 1
