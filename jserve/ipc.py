"""Frames over a local stream socket: a little-endian u32 length, then msgpack of one message.

The engine's side is blocking, and one thread receives (`EngineSocket`); the API's side is asyncio
(`FrameReader`, `encode_frame`). Neither imports jax.
"""

import asyncio
import select
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

import msgspec

from jserve.protocol import FromEngine, StepFrame, ToEngine, TokenDelta

_LENGTH = struct.Struct("<I")
_READ_SIZE = 1 << 20
MAX_PROMPT_LOGPROBS = 512
"""In one frame: with 20 alternatives each, a few milliseconds to read."""

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """One message as bytes ready for the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def _pieces(message: FromEngine) -> Iterator[FromEngine]:
    """`message`, after frames with what is too much of the prompt logprobs in it."""
    if isinstance(message, StepFrame) and any(delta.prompt_logprobs is not None for delta in message.deltas):
        deltas = []
        for delta in message.deltas:
            scores = delta.prompt_logprobs or []
            kept_from = max(0, len(scores) - 1) // MAX_PROMPT_LOGPROBS * MAX_PROMPT_LOGPROBS
            for begin in range(0, kept_from, MAX_PROMPT_LOGPROBS):
                piece = TokenDelta(delta.request_id, [], prompt_logprobs=scores[begin : begin + MAX_PROMPT_LOGPROBS])
                yield StepFrame([piece], message.stats)
            deltas.append(msgspec.structs.replace(delta, prompt_logprobs=scores[kept_from:]) if kept_from else delta)
        message = StepFrame(deltas, message.stats)
    yield message


class EngineSocket:
    """The engine's end: never blocks the loop while there is work, sleeps in the kernel while there is none."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()  # Its number may be above what select() takes, where the server has many clients.
        self._poll.register(connection, select.POLLIN)
        self._buffer = bytearray()
        self._sending = threading.Lock()
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
        """Write one message whole. Any thread may call. Raises `ConnectionError` where the peer is gone.

        The logprobs of a long prompt go ahead of it in pieces: to read them at once would hold up the other side.
        """
        frames = [encode_frame(piece) for piece in _pieces(message)]
        with self._sending:
            for frame in frames:
                self._connection.sendall(frame)

    def _is_readable(self, timeout: float | None) -> bool:
        return bool(self._poll.poll(None if timeout is None else timeout * 1e3))

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


class FrameReader(asyncio.Protocol):
    """The server's end, for reading: decodes what comes as it comes, several messages at once where it is behind."""

    def __init__(self) -> None:
        self._buffer = b""
        self._messages: list[FromEngine] = []
        self._end: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        start, size = 0, len(buffer)
        try:
            while size - start >= _LENGTH.size:
                end = start + _LENGTH.size + _LENGTH.unpack_from(buffer, start)[0]
                if end > size:
                    break
                self._messages.append(_from_engine.decode(buffer[start + _LENGTH.size : end]))
                start = end
        except msgspec.DecodeError as error:
            self._end = error
        self._buffer = buffer[start:]
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end = self._end or exc or ConnectionResetError("the engine is gone")
        self._wake()

    async def read(self) -> list[FromEngine]:
        """All messages that have come, at least one. Raises ConnectionError after the last."""
        while not self._messages:
            if self._end is not None:
                raise self._end
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        messages, self._messages = self._messages, []
        return messages

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
