"""Frames over a local stream socket: a little-endian u32 length, then msgpack of one message.

The engine's side is blocking and single-threaded (`EngineSocket`); the API's side is asyncio
(`read_frame`, `write_frame`). Neither imports jax.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Iterable

import msgspec

from jserve.protocol import FromEngine, ToEngine

_LENGTH = struct.Struct("<I")
_READ_SIZE = 1 << 20

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """One message as bytes ready for the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class EngineSocket:
    """The engine's end: never blocks the loop while there is work, sleeps in the kernel while there is none."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self.is_closed = False

    def receive(self, *, block: bool) -> list[ToEngine]:
        """All messages that have arrived. With `block`, waits for at least one, or for the peer to go away.

        A peer that is gone sets `is_closed`; what it sent before is still returned.
        """
        while True:
            messages = list(self._decode())
            if messages or self.is_closed:
                return messages
            if not self._is_readable(None if block else 0.0):
                return messages
            self._fill()

    def send(self, message: FromEngine) -> None:
        """Write one message whole. Raises `BrokenPipeError` or `ConnectionError` where the peer is gone."""
        self._connection.sendall(encode_frame(message))

    def _is_readable(self, timeout: float | None) -> bool:
        return bool(select.select([self._connection], [], [], timeout)[0])

    def _fill(self) -> None:
        try:
            data = self._connection.recv(_READ_SIZE)
        except ConnectionError:
            data = b""
        if data:
            self._buffer += data
        else:
            self.is_closed = True

    def _decode(self) -> Iterable[ToEngine]:
        start = 0
        buffer = self._buffer
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield _to_engine.decode(bytes(buffer[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]


async def read_frame(reader: asyncio.StreamReader) -> FromEngine:
    """The next message from the engine. Raises `asyncio.IncompleteReadError` where the engine is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    message: FromEngine = _from_engine.decode(await reader.readexactly(length))
    return message


def write_frame(writer: asyncio.StreamWriter, message: ToEngine) -> None:
    """Queue one message for the engine; `await writer.drain()` applies back pressure."""
    writer.write(encode_frame(message))
