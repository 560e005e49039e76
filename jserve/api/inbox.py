"""Where the tokens of one client wait between the engine's frame and the HTTP write.

All choices of one HTTP request share an inbox, so a step wakes a client once, however many of its
sequences the step advanced; what arrives while the client is slow is handed over in one piece.
"""

import asyncio

from jserve.protocol import TokenDelta


class Inbox:
    """Deltas of the requests `request_ids`, in order of arrival. One task may wait at a time."""

    __slots__ = ("_arrived", "_error", "_waiter", "request_ids")

    def __init__(self, request_ids: tuple[str, ...]) -> None:
        self.request_ids = request_ids
        self._arrived: list[TokenDelta] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def put(self, delta: TokenDelta) -> None:
        """Add a delta and wake the reader."""
        self._arrived.append(delta)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Make the next `take` raise `error`, once what arrived before has been taken."""
        if self._error is None:
            self._error = error
            self._wake()

    async def take(self) -> list[TokenDelta]:
        """Everything that has arrived, at least one delta. Raises what `fail` was given."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        return arrived

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
