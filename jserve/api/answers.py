"""How an answer leaves: whole, or as a stream of events. What it says is the endpoint's `Answer`."""

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jserve.api.body import cancel_on_disconnect
from jserve.api.choice import ChoiceUpdate
from jserve.api.errors import ClientGoneError, ErrorAnswer, answer_for
from jserve.api.generation import Generation, Generator

DONE = b"data: [DONE]\n\n"
"""The end of a stream of OpenAI's."""
EVENT_STREAM = "text/event-stream; charset=utf-8"


class Answer(Protocol):
    """Renders the choices of one generation in an endpoint's shape."""

    @property
    def stream_type(self) -> str:
        """The media type of the stream."""

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """The events for what one step added; may be empty."""

    def last_chunk(self) -> bytes:
        """What ends the stream, after the last token; may be empty."""

    def error(self, problem: ErrorAnswer) -> bytes:
        """What ends a stream that has failed."""

    def whole(self, updates: list[ChoiceUpdate]) -> bytes:
        """The body where nothing is streamed, from all updates."""


async def send_answer(
    request: Request, generator: Generator, generation: Generation, answer: Answer, *, stream: bool
) -> Response:
    """The response for a generation that has just started; it is finished in every case."""
    if stream:
        return EventStream(generator, generation, answer)
    watcher = cancel_on_disconnect(request.receive, generation)
    try:
        body = answer.whole(await generation.rest())
    finally:
        watcher.cancel()
        generator.finish(generation)
    return Response(body, media_type="application/json")


class EventStream(Response):
    """Sends one HTTP write per engine step at most; what piles up behind a slow client goes out together."""

    def __init__(self, generator: Generator, generation: Generation, answer: Answer) -> None:
        super().__init__()
        self._generator = generator
        self._generation = generation
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = cancel_on_disconnect(receive, self._generation)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._stream_headers()})
            await self._send_events(send)
        except ClientGoneError:
            pass  # Nobody is left to be told.
        except Exception as error:
            body = self._answer.error(answer_for(error))
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            watcher.cancel()
            self._generator.finish(self._generation)

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", self._answer.stream_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]

    async def _send_events(self, send: Send) -> None:
        generation = self._generation
        while not generation.is_finished:
            body = self._answer.chunk(await generation.step())
            if generation.is_finished:
                body += self._answer.last_chunk()
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": not generation.is_finished})
