"""A body that is written in pieces, so that a large one holds up nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jserve.api.http.body_writer import body_writer_of

_BLOCK_BYTES = 1 << 18
"""What is sent at once. A body that is no larger has its length in the head."""
_PIECES_PER_TURN = 4
"""A piece takes a millisecond or two to make; after so many of them the event loop serves others."""


class BodyInPieces(Response):
    """JSON out of `pieces`, made one by one. `on_done` is called when the last has been sent or the client has left."""

    def __init__(self, pieces: Iterator[bytes], on_done: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._pieces = pieces
        self._on_done = on_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = body_writer_of(scope)
        headers = [(b"content-type", b"application/json")]
        is_begun = False
        try:
            # HTTP/1.0 knows no chunks: there the length stands in the head, whatever it is.
            async for block, is_last in self._blocks(scope["http_version"] == "1.0"):
                if not is_begun:
                    length = [(b"content-length", b"%d" % len(block))] if is_last else []
                    await send({"type": "http.response.start", "status": 200, "headers": headers + length})
                    is_begun = True
                await send({"type": "http.response.body", "body": block, "more_body": not is_last})
                if writer.is_closed:
                    return
        finally:
            self._on_done()

    async def _blocks(self, in_one: bool) -> AsyncIterator[tuple[bytes, bool]]:
        """The body in blocks, or `in_one`, each with whether it is the last."""
        held: list[bytes] = []
        size = 0
        for number, piece in enumerate(self._pieces, 1):
            if size > _BLOCK_BYTES and not in_one:
                yield b"".join(held), False
                held, size = [], 0
            held.append(piece)
            size += len(piece)
            if number % _PIECES_PER_TURN == 0:
                await asyncio.sleep(0)
        yield b"".join(held), True
