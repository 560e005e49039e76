"""A request without a connection: a handler is called as it would be for a client, and its answer is kept whole.

Lines of batches and responses in the background are answered so, by the same code and with the same errors.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from jserve.api.call import Call, enter_call
from jserve.api.context import ServerContext
from jserve.api.errors import EXPECTED_ERRORS, answer_for
from jserve.api.http.body_writer import attach_no_writer
from jserve.api.http.error_handler import handle_error
from jserve.log import request_fields

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class HandlerAnswer:
    """What a handler answered."""

    status: int
    body: bytes
    retry_after_s: int | None = None


async def answer_of(server: ServerContext, handler: Handler, call: Call, body: bytes) -> HandlerAnswer:
    """The answer of `handler` to a JSON body, in the name of `call`. It must not be a stream.

    Cancelling the task ends the request, and the engine is told.
    """
    enter_call(call)
    request_fields.set({"request_id": call.request_id, "key_id": call.key.id})
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": call.method,
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": b"",
        "scheme": "http",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", call.request_id.encode()),
        ],
        "app": SimpleNamespace(state=SimpleNamespace(server=server)),
    }
    attach_no_writer(scope)
    return await _run(handler, scope, body)


async def _run(handler: Handler, scope: Scope, body: bytes) -> HandlerAnswer:
    parts: list[bytes] = []
    status, retry_after = 500, ""
    is_received = False

    async def receive() -> Message:
        nonlocal is_received
        if is_received:
            await asyncio.get_running_loop().create_future()  # The client never leaves.
        is_received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, retry_after
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.lower(): value for name, value in message["headers"]}
            retry_after = headers.get(b"retry-after", b"").decode()
        else:
            parts.append(message.get("body", b""))

    request = Request(scope, receive, send)
    try:
        response = await handler(request)
    except EXPECTED_ERRORS as error:
        response = await handle_error(request, error)
    except Exception as error:
        response = answer_for(error).response()  # Logs it.
    await response(scope, receive, send)
    return HandlerAnswer(status, b"".join(parts), int(retry_after) if retry_after.isdecimal() else None)
