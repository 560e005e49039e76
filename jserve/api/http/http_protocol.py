"""uvicorn's HTTP protocol with what it lacks against clients that mean no good: limits on the head of a request,
in bytes and in seconds, and errors in the API's own words.
"""

import asyncio
import logging
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jserve.api.errors import ErrorAnswer
from jserve.api.http.body_writer import BodyWriter, attach_body_writer

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 1 << 16
_FRAMING = 8
"""Bytes on the wire per byte of a body, at most: chunks of a single byte have seven more."""
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def http_protocol(timeout_s: float, max_request_bytes: int) -> type["HttpProtocol"]:
    """The protocol of a server with these limits, as uvicorn wants it: a class."""
    max_wire_bytes = MAX_HEAD_BYTES + _FRAMING * max_request_bytes
    return type("LimitedHttpProtocol", (HttpProtocol,), {"timeout_s": timeout_s, "max_wire_bytes": max_wire_bytes})


class HttpProtocol(HttpToolsProtocol):
    """One connection. A head that is too long or too slow ends it."""

    timeout_s = 20.0
    max_wire_bytes = 1 << 30

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._num_wire_bytes = 0
        self._has_head = False
        self._is_refused = False
        self._body_writer: BodyWriter | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._deadline is None:
            self._start_clock()
        self._num_wire_bytes += len(data)
        super().data_received(data)
        if self._is_refused:
            return
        if not self._has_head and self._num_wire_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
        elif self._num_wire_bytes > self.max_wire_bytes:
            self.transport.close()

    def on_message_begin(self) -> None:
        self._has_head = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._has_head = True
        self._num_wire_bytes = 0
        self._stop_clock()
        num_head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
        else:
            super().on_headers_complete()
            self._body_writer = attach_body_writer(cast(Scope, self.scope), self.cycle)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._body_writer is not None and self._body_writer.on_writable is not None:
            self._body_writer.on_writable()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._num_wire_bytes = 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as JSON."""
        self._refuse(400, msg)

    def _start_clock(self) -> None:
        self._deadline = self.loop.call_later(self.timeout_s, self._on_timeout)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_timeout(self) -> None:
        self._deadline = None
        if self._num_wire_bytes and not self._has_head:
            self._refuse(408, "the head of the request did not arrive in time")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer, in place of the request that is being received, unless its answer is under way; and close."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        logger.info("a connection was refused with %d: %s", status, message)
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            phrase = _PHRASES[status]
            body = ErrorAnswer(status, message, phrase).body()
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            if cycle is not None:
                cycle.disconnected = True  # What its handler still says is dropped.
        self.transport.close()
