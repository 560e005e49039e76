"""How an answer leaves: whole, or as a stream of events. What it says is the endpoint's `Answer`."""

import asyncio
from collections.abc import Iterator
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.errors import ClientGoneError, ErrorAnswer, answer_for
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation, Generator
from jserve.api.http.body import cancel_on_disconnect
from jserve.api.http.body_writer import BodyWriter, body_writer_of
from jserve.api.http.pacing import KeepAlive, StreamInterval
from jserve.api.http.pieces import BodyInPieces

DONE = b"data: [DONE]\n\n"
"""The end of a stream of OpenAI's."""
EVENT_STREAM = "text/event-stream; charset=utf-8"


class Answer(Protocol):
    """Renders the choices of one generation in an endpoint's shape."""

    @property
    def stream_type(self) -> str:
        """The media type of the stream."""

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes | Iterator[bytes]:
        """The events for what one step added; may be empty. In pieces where they take long to make."""

    def last_chunk(self) -> bytes:
        """What ends the stream, after the last token; may be empty."""

    def error(self, problem: ErrorAnswer) -> bytes:
        """What ends a stream that has failed."""

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add, in little memory, for the body where nothing is streamed."""

    def whole(self) -> Iterator[bytes]:
        """That body, once all updates are collected, in pieces that each take a millisecond or two to make."""


async def send_answer(
    request: Request, generator: Generator, generation: Generation, answer: Answer, *, stream: bool
) -> Response:
    """The response for a generation that has just started; it is finished in every case."""
    if stream:
        current_call().is_streamed = True
        is_events = answer.stream_type.startswith("text/event-stream")  # NDJSON has no comments.
        keep_alive_s = context_of(request).settings.sse_keep_alive_interval_s if is_events else 0.0
        return EventStream(generator, generation, answer, keep_alive_s)
    watcher = cancel_on_disconnect(request.receive, generation)
    try:
        await generation.rest(answer.collect)
    except BaseException:
        generator.finish(generation)
        raise
    finally:
        watcher.cancel()
    return BodyInPieces(answer.whole(), lambda: generator.finish(generation))


async def all_updates(request: Request, generator: Generator, generation: Generation) -> list[ChoiceUpdate]:
    """Everything that a generation which has just started gives; it is finished in every case."""
    watcher = cancel_on_disconnect(request.receive, generation)
    updates: list[ChoiceUpdate] = []
    try:
        await generation.rest(updates.extend)
        return updates
    finally:
        watcher.cancel()
        generator.finish(generation)


class EventStream(Response):
    """Sends one HTTP write per engine step at most; what piles up behind a slow client goes out together.

    The head and the last events go the way of ASGI. In between there is no task to wake: the engine's frame calls
    `_advance`, which writes.
    """

    def __init__(self, generator: Generator, generation: Generation, answer: Answer, keep_alive_s: float) -> None:
        super().__init__()
        self._keep_alive_s = keep_alive_s
        self._interval = StreamInterval(generation.request.stream_interval)
        self._generator = generator
        self._generation = generation
        self._answer = answer
        self._writer: BodyWriter
        self._keep_alive: KeepAlive
        self._last_events: asyncio.Future[bytes]
        self._pieces: Iterator[bytes] | None = None
        """What is left of the chunk that is being written in pieces."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = cancel_on_disconnect(receive, self._generation)
        self._writer = body_writer_of(scope)
        self._keep_alive = KeepAlive(self._writer, self._keep_alive_s)
        self._last_events = asyncio.get_running_loop().create_future()
        self._writer.begin()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._stream_headers()})
            self._keep_alive.start()
            body = await self._events()
            await send(self._writer.last_message(body))
        except ClientGoneError:
            pass  # Nobody is left to read it.
        except Exception as error:
            self._keep_alive.stop()
            held = self._interval.rest()
            events = self._answer.chunk(held) if held else b""
            body = (events if isinstance(events, bytes) else b"".join(events)) + self._answer.error(answer_for(error))
            await send(self._writer.last_message(body))
        finally:
            watcher.cancel()
            self._writer.on_writable = None
            self._keep_alive.stop()
            self._generator.finish(self._generation)

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", self._answer.stream_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]

    async def _events(self) -> bytes:
        """Write all events but the last, and return those. Raises what ends the stream early."""
        self._generation.listen(self._advance)
        self._writer.on_writable = self._advance
        self._advance()
        return await self._last_events

    def _advance(self) -> None:
        """Something has arrived, or the client can take more."""
        if self._writer.is_paused or self._last_events.done():
            return
        try:
            if self._pieces is None:
                updates = self._interval.push(self._generation.advance())
                body = self._answer.chunk(updates) if updates else b""
                if isinstance(body, bytes):
                    self._write(body)
                    return
                self._pieces = body
            self._write_piece(self._pieces)
        except BaseException as error:
            self._last_events.set_exception(error)

    def _write(self, body: bytes) -> None:
        """Write a whole chunk, and what ends the stream where it is the last."""
        if self._generation.is_finished:
            self._keep_alive.stop()
            self._last_events.set_result(body + self._answer.last_chunk())
        elif body:
            self._keep_alive.note()
            self._writer.write(body)

    def _write_piece(self, pieces: Iterator[bytes]) -> None:
        """Write the next piece of a chunk; others have their turn before what follows it."""
        piece = next(pieces, None)
        if piece is None:
            self._pieces = None
            self._write(b"")
        elif piece:
            self._keep_alive.note()
            self._writer.write(piece)
        asyncio.get_running_loop().call_soon(self._advance)
