"""Sends an answer, whole or as a stream of events. The endpoint's `Answer` writes the body."""

import asyncio
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jserve.api.context import context_of
from jserve.api.errors import ClientGoneError, ErrorAnswer, answer_for
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation, Generator
from jserve.api.http.body import cancel_on_disconnect
from jserve.api.http.body_writer import BodyWriter, body_writer_of
from jserve.api.http.pacing import KeepAlive, StreamInterval

DONE = b"data: [DONE]\n\n"
"""The last event of OpenAI's streams."""
_INLINE_ENTRIES = 1_000
"""An answer of up to so many tokens and logprobs is written on the event loop, in a few milliseconds."""
_MOST_UPDATES = 256
"""The most updates that are written at once. A step of many choices brings more, and so does a client that pauses."""
EVENT_STREAM = "text/event-stream; charset=utf-8"


class Answer(Protocol):
    """Renders the choices of one generation in an endpoint's shape."""

    @property
    def stream_type(self) -> str:
        """The media type of the stream."""

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """The events for what one step added; may be empty."""

    def last_chunk(self) -> bytes:
        """The end of the stream, after the last token; may be empty."""

    def error(self, problem: ErrorAnswer) -> bytes:
        """The end of a stream that has failed."""

    def whole(self, updates: list[ChoiceUpdate]) -> bytes:
        """The body of an answer that is not streamed, from all updates."""


async def send_answer(
    request: Request, generator: Generator, generation: Generation, answer: Answer, *, stream: bool
) -> Response:
    """The response to a generation that has just started. The generation is finished in every case."""
    if stream:
        is_events = answer.stream_type.startswith("text/event-stream")  # NDJSON has no comments.
        keep_alive_s = context_of(request).settings.sse_keep_alive_interval_s if is_events else 0.0
        return EventStream(generator, generation, answer, keep_alive_s)
    watcher = cancel_on_disconnect(request.receive, generation)
    try:
        body = await _written(answer, await generation.rest())
    finally:
        watcher.cancel()
        generator.finish(generation)
    return Response(body, media_type="application/json")


async def _written(answer: Answer, updates: list[ChoiceUpdate]) -> bytes:
    """The body of a whole answer. A large one is written in a thread: everybody's tokens would wait for it."""
    size = sum(len(update.token_ids) + _num_logprobs(update) for update in updates)
    return answer.whole(updates) if size <= _INLINE_ENTRIES else await asyncio.to_thread(answer.whole, updates)


def _num_logprobs(update: ChoiceUpdate) -> int:
    positions = [*(update.logprobs or ()), *(update.prompt_logprobs or ())]
    return sum(len(position.top_ids) + len(position.chosen_logprobs) for position in positions)


async def all_updates(request: Request, generator: Generator, generation: Generation) -> list[ChoiceUpdate]:
    """All updates of a generation that has just started. The generation is finished in every case."""
    watcher = cancel_on_disconnect(request.receive, generation)
    try:
        return await generation.rest()
    finally:
        watcher.cancel()
        generator.finish(generation)


class EventStream(Response):
    """Sends one HTTP write per engine step at most; what piles up behind a slow client goes out together.

    The head and the last events are ASGI messages. The events between need no task: the engine's frame calls
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
        self._pending: list[ChoiceUpdate] = []
        """Updates that have come and are not written yet."""

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
            pass  # Nobody is left to be told.
        except Exception as error:
            self._keep_alive.stop()
            held = self._pending + self._interval.rest()
            body = (self._answer.chunk(held) if held else b"") + self._answer.error(answer_for(error))
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
            updates = self._pending + self._interval.push(self._generation.advance())
            self._pending = updates[_MOST_UPDATES:]
            if self._pending:  # Others have their turn first.
                updates = updates[:_MOST_UPDATES]
                asyncio.get_running_loop().call_soon(self._advance)
            body = self._answer.chunk(updates) if updates else b""
            if self._generation.is_finished and not self._pending:
                self._keep_alive.stop()
                self._last_events.set_result(body + self._answer.last_chunk())
            elif body:
                self._keep_alive.note()
                self._writer.write(body)
        except BaseException as error:
            self._last_events.set_exception(error)
