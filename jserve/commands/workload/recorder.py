"""The proxy of `jserve record`: every byte goes on at once and unchanged, and is looked at after it has gone."""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from jserve.api.telemetry.workload import RecordedRequest
from jserve.commands.workload.exchange import Exchange
from jserve.errors import ConfigError

logger = logging.getLogger(__name__)

_HIGH_WATER = 1 << 20
"""Bytes that wait for a slow reader before its counterpart is read no further."""
_REFUSAL = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
)


class Upstream:
    """Where the traffic goes. Raises ConfigError for a URL that is none."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(f"--upstream {url} is not http://HOST:PORT; a path belongs into the clients' base URL")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None


class Recorder:
    """The factory of connections, which share a salt that is in no file."""

    def __init__(self, upstream: Upstream, write: Callable[[RecordedRequest], None]) -> None:
        self.upstream = upstream
        self.write = write
        self.salt = secrets.token_bytes(32)
        self.began = time.monotonic()

    def connection(self) -> "_ClientSide":
        """A protocol for a client that has come."""
        return _ClientSide(self)


class _Side(asyncio.Protocol):
    """One end: hands bytes to the other end, and keeps from reading more than that takes."""

    transport: asyncio.Transport
    other: "_Side | None" = None
    has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        """One end will send no more: the other is told, and may go on. Where both have ended, all is over."""
        self.has_ended = True
        if self.other is None or self.other.has_ended or not self.other.transport.can_write_eof():
            return False
        self.other.transport.write_eof()
        return True


class _ClientSide(_Side):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._waiting: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None
        self._refusal = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        recorder = self._recorder
        self.exchange = Exchange(str(peer[0]) if peer else "", recorder.salt, recorder.began, recorder.write)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        upstream, loop = self._recorder.upstream, asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(
                lambda: _ServerSide(self), upstream.host, upstream.port, ssl=upstream.tls
            )
        except OSError as error:
            message = f"jserve record: {upstream.host}:{upstream.port} does not answer: {error}"
            body = msgspec.json.encode({"error": {"message": message, "type": "Bad Gateway", "code": None}})
            self._refusal = _REFUSAL % (len(body), body)
            self._refuse()
            return
        self.other = server
        for data in self._waiting:
            server.transport.write(data)
        self._waiting.clear()

    def _refuse(self) -> None:
        """Answer in the server's place, once the request is there: a client may read no answer while it writes."""
        if self._refusal and self.exchange.is_waiting:
            self.transport.write(self._refusal)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
        elif not self._refusal:
            self._waiting.append(data)
        self.exchange.data_from_client(data)
        self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self.exchange.close()
        if self.other is not None:
            self.other.transport.close()


class _ServerSide(_Side):
    def __init__(self, client: _ClientSide) -> None:
        self.other = self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)
        self._client.exchange.data_from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport.close()


async def record(recorder: Recorder, host: str, port: int, on_listening: Callable[[int], None]) -> None:
    """Serve until cancelled. `on_listening` gets the port. Raises OSError where it cannot listen."""
    server = await asyncio.get_running_loop().create_server(recorder.connection, host, port)
    async with server:
        on_listening(server.sockets[0].getsockname()[1])
        await server.serve_forever()
