"""uvicorn's HTTP protocol with what it lacks against hostile clients: limits on the head of a request (in
bytes and in seconds), on requests that are sent before the first is answered, and on connections; errors in the API's
own words.
"""

import asyncio
import logging
from collections import deque
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jserve.api.errors import ErrorAnswer
from jserve.api.http.body_writer import BodyWriter, attach_body_writer
from jserve.api.http.parser import OfferDecliningParser
from jserve.api.http.read_gate import ReadGate

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 1 << 16
_FRAMING = 8
"""Bytes on the wire per byte of a body, at most: chunks of a single byte have seven more."""
MAX_WAITING_REQUESTS = 4
"""So many requests of one connection may wait for their turn; then no more is read. Few clients ever send two."""
MAX_WAITING_BODY = 1 << 16
"""So many bytes of the body of such a request may wait."""
_MOST_WAITING = 64
"""One piece of the input can hold more than may wait, if requests are tiny. Above this the connection ends."""
_HEAD_PIECE, _BODY_PIECE = 1 << 10, 1 << 14
"""Bytes that are parsed before the limits are looked at again, between bodies and within one."""
_MOST_REFUSALS = 16
_REFUSE_WITHIN_S = 1.0
"""So many connections above the most may wait for their refusal, and so long."""
_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def http_protocol(timeout_s: float, max_request_bytes: int, max_connections: int) -> type["HttpProtocol"]:
    """The protocol of a server with these limits, as uvicorn wants it: a class."""
    limits = {
        "timeout_s": timeout_s,
        "max_wire_bytes": MAX_HEAD_BYTES + _FRAMING * max_request_bytes,
        "max_connections": max_connections,
    }
    return type("LimitedHttpProtocol", (HttpProtocol,), limits)


class HttpProtocol(HttpToolsProtocol):
    """One connection. A head that is too long or too slow ends it; too many requests at once are left unread."""

    timeout_s = 20.0
    max_wire_bytes = 1 << 30
    max_connections = 1 << 30

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser: OfferDecliningParser = OfferDecliningParser(self)  # type: ignore[assignment]  # it has what is called
        self._gate: ReadGate
        self._unparsed = b""
        self._deadline: asyncio.TimerHandle | None = None
        self._num_wire_bytes = 0
        self._has_head = False
        self._is_refused = False
        self._is_too_many = False
        self._writers: deque[BodyWriter] = deque()
        """One for each request without a complete answer. The first is being answered, the others wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._gate = ReadGate(transport)
        if len(self.connections) > self.max_connections:
            self._wait_to_refuse()
        else:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._unparsed = b""
        for writer in self._writers:
            writer.client_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_too_many:
            self._refuse_place()
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._deadline is None:
            self._start_clock()
        self._unparsed = self._unparsed + data if self._unparsed else data
        self._parse()

    def on_message_begin(self) -> None:
        self._has_head = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._is_refused or self.parser.is_offer:
            return
        self._has_head = True
        self._num_wire_bytes = 0
        self._stop_clock()
        num_head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
            return
        super().on_headers_complete()
        self._writers.append(attach_body_writer(cast(Scope, self.scope), self.cycle))
        if not self._is_full:
            self._gate.resume_reading()  # uvicorn stops at the first that waits, and would not see its client leave.
        if len(self.pipeline) > _MOST_WAITING:
            self._end(f"{len(self.pipeline)} requests came before the first was answered")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writers and (on_writable := self._writers[0].on_writable) is not None:
            on_writable()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused and not self.parser.is_offer:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._num_wire_bytes = 0
        if self._writers:
            self._writers.popleft()
        super().on_response_complete()
        if self._gate.is_held and not self.transport.is_closing():
            self._parse()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as JSON."""
        self._refuse(400, msg)

    def _parse(self) -> None:
        """Parse what has come, piece by piece, until too much waits for its turn."""
        data, start = self._unparsed, 0
        while start < len(data) and not self._is_refused:
            if self._is_full:
                self._unparsed = data[start:]
                self._gate.hold()
                return
            is_in_body = self.cycle is not None and self.cycle.more_body
            piece = data[start : start + (_BODY_PIECE if is_in_body else _HEAD_PIECE)]
            start += len(piece)
            self._num_wire_bytes += len(piece)
            super().data_received(piece)
            self._check_wire_bytes()
        self._unparsed = b""
        if not self._is_refused:
            self._gate.release()

    @property
    def _is_full(self) -> bool:
        """Whether as many requests, or as many bytes of one, wait for their turn as may."""
        waiting = self.pipeline
        return bool(waiting) and (len(waiting) >= MAX_WAITING_REQUESTS or len(self.cycle.body) > MAX_WAITING_BODY)

    def _check_wire_bytes(self) -> None:
        if not self._has_head and self._num_wire_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes")
        elif self._num_wire_bytes > self.max_wire_bytes:
            self._end("the body of the request is longer than its framing may make it")

    def _wait_to_refuse(self) -> None:
        """Refuse this connection, which is one too many, once its request is here: what it has not read, a closed
        socket answers with a reset, which can take the 503 along. Few wait so, and not for long.
        """
        if len(self.connections) > self.max_connections + _MOST_REFUSALS:
            self._refuse_place()
            return
        self._is_too_many = True
        self._deadline = self.loop.call_later(_REFUSE_WITHIN_S, self._refuse_place)

    def _refuse_place(self) -> None:
        self._refuse(503, f"the server has {self.max_connections} connections, the most that it takes; try again")

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
        """Answer, in place of the request that is being received, unless an answer is under way; and close."""
        if self._is_refused or self.transport.is_closing():
            return
        cycle = self.cycle
        is_its_turn = len(self._writers) < 2
        if is_its_turn and (cycle is None or cycle.response_complete or not cycle.response_started):
            phrase = _PHRASES[status]
            body = ErrorAnswer(status, message, phrase).body()
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            if status == 503:
                head += "retry-after: 1\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            if cycle is not None:
                cycle.disconnected = True  # What its handler still says is dropped.
        self._end(message, status)

    def _end(self, why: str, status: int = 0) -> None:
        """Close the connection and ignore what still comes."""
        self._is_refused = True
        logger.info("a connection was closed%s: %s", f" with {status}" if status else "", why)
        self.transport.close()
