"""Writes pieces of a response's body straight to the connection.

A message through all layers of ASGI costs more than everything else that is done with a token. The head of a
response and its end still go through them; what comes between needs nothing of theirs.
"""

from collections.abc import Callable

from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_KEY = "jserve.body"


class BodyWriter:
    """The body of one response, whose head has been sent and which has no content-length."""

    __slots__ = ("_cycle", "_has_chunks", "num_bytes", "on_writable")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._has_chunks = True
        self.num_bytes = 0
        """Bytes of the body that were written here, for the metrics."""
        self.on_writable: Callable[[], None] | None = None
        """Called after `is_paused`, when the client has read enough to be sent more."""

    @property
    def is_paused(self) -> bool:
        """Whether so many bytes wait for the client that nothing more should be written."""
        return self._cycle.flow.write_paused

    @property
    def is_closed(self) -> bool:
        """Whether the client is gone."""
        return self._cycle.disconnected

    def begin(self) -> None:
        """Call it before the head is sent. HTTP/1.0 has no chunks: there the body ends with the connection."""
        if self._cycle.scope["http_version"] == "1.0":
            self._has_chunks = False
            self._cycle.chunked_encoding = False

    def write(self, body: bytes) -> None:
        """Send `body`, not empty, as a chunk. Where the client is gone nothing happens."""
        cycle = self._cycle
        if not cycle.disconnected and not cycle.response_complete:
            self.num_bytes += len(body)
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body) if self._has_chunks else body)

    def last_message(self, body: bytes) -> Message:
        """The message that ends the response, after the last piece of its body."""
        if body and not self._has_chunks:
            self.write(body)
            body = b""
        return {"type": "http.response.body", "body": body, "more_body": False}

    def client_left(self) -> None:
        """The client is gone: tell the handler, and drop what it still writes."""
        self._cycle.disconnected = True
        self._cycle.message_event.set()


def attach_body_writer(scope: Scope, cycle: RequestResponseCycle) -> BodyWriter:
    """Let the application find the connection's writer in `scope`."""
    writer = BodyWriter(cycle)
    scope.setdefault("extensions", {})[_KEY] = writer
    return writer


def body_writer_of(scope: Scope) -> BodyWriter:
    """The writer of the request's connection."""
    writer: BodyWriter = scope["extensions"][_KEY]
    return writer


class NoWriter:
    """The writer of a request without a connection: nobody leaves, and nothing is written past ASGI."""

    is_closed = False
    num_bytes = 0


def attach_no_writer(scope: Scope) -> None:
    """Let the application find it in `scope`."""
    scope.setdefault("extensions", {})[_KEY] = NoWriter()
