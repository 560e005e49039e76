"""Reading a request: its JSON, its id, and whether its client is still there."""

import asyncio
import re
import secrets
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive

from jserve.api.call import Call
from jserve.api.context import context_of
from jserve.api.errors import ClientGoneError, MediaTypeError
from jserve.api.generation.generation import Generation
from jserve.api.http.receive import check_json_weight, received_body
from jserve.errors import RequestError

Body = TypeVar("Body", bound=BaseModel)

_INLINE_BYTES = 1 << 16
"""Bodies up to here are parsed on the event loop, in a few milliseconds at worst."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors and clients put before a text in UTF-8; RFC 8259 (8.1) lets readers ignore it."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CACHE_SALT = re.compile(r"[^@/\\\x00]{1,128}")


async def read_body(request: Request, schema: type[Body], *, any_media_type: bool = False) -> Body:
    """The body as `schema`. Raises MediaTypeError, HTTPException, pydantic's ValidationError, or ClientGoneError.

    `any_media_type` takes the body for JSON whatever its header says, which is what `curl -d` without one needs;
    but not from a browser, which names the page's origin.
    """
    if not any_media_type or "origin" in request.headers:
        _check_media_type(request)
    async with received_body(request, context_of(request)) as raw:
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if len(raw) <= _INLINE_BYTES:
            return schema.model_validate_json(raw)
        return await asyncio.to_thread(_validate_large, raw, schema)


def _check_media_type(request: Request) -> None:
    """What is JSON must say so: pages of other sites may post anything else to this server without asking it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise MediaTypeError("Unsupported Media Type: Only 'application/json' is allowed")


def _validate_large(raw: bytes, schema: type[Body]) -> Body:
    check_json_weight(raw)
    return schema.model_validate_json(raw)


def public_id(prefix: str, call: Call, requested: str | None) -> str:
    """The id that the client sees: its own, from the body or `X-Request-Id`, or the random one of the call.

    It is joined to `prefix` by a dash (chatcmpl-), unless that ends in an underscore (resp_, msg_).
    """
    prefix = prefix if prefix.endswith("_") else f"{prefix}-"
    chosen = requested or call.request_id
    if chosen and _REQUEST_ID.fullmatch(chosen):
        return f"{prefix}{chosen}"
    if requested:
        message = "request_id must be 1 to 128 printable ASCII characters without spaces"
        raise RequestError(message, param="request_id")
    return f"{prefix}{secrets.token_hex(16)}"


def check_cache_salt(salt: str | None) -> str:
    """The salt, "" for none. Raises RequestError where it could not be part of a key."""
    if salt is None:
        return ""
    if not _CACHE_SALT.fullmatch(salt):
        message = "cache_salt must be 1 to 128 characters without '@', '/', '\\' and NUL"
        raise RequestError(message, param="cache_salt")
    return salt


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def cancel_on_disconnect(receive: Receive, generation: Generation) -> "asyncio.Task[None]":
    """Watch the connection; when the client leaves, the engine is told at once. Cancel the task when done."""

    async def watch() -> None:
        await _wait_for_disconnect(receive)
        generation.cancel(ClientGoneError("the client disconnected"))

    return asyncio.create_task(watch())
