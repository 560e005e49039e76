"""Where the tokens of one client wait between the engine's frame and the HTTP write.

All choices of one HTTP request share an inbox, so a step wakes a client once, however many of its
sequences the step advanced; what arrives while the client is slow is handed over in one piece.
"""

import asyncio
from collections.abc import Callable
from contextvars import copy_context

from jserve.protocol import TokenDelta

MAX_DRAINED = 256
"""Deltas that are turned into text, or an event, in one turn of the event loop: with 20 logprobs each, 6 ms."""


class Inbox:
    """Deltas of the requests `request_ids`, in order of arrival, for one listener."""

    __slots__ = ("_arrived", "_error", "_listener", "request_ids")

    def __init__(self, request_ids: tuple[str, ...]) -> None:
        self.request_ids = request_ids
        self._arrived: list[TokenDelta] = []
        self._listener: Callable[[], None] | None = None
        self._error: BaseException | None = None

    def put(self, delta: TokenDelta) -> bool:
        """Add a delta. True where it is the first of those that wait: the caller must `wake` the listener."""
        arrived = self._arrived
        arrived.append(delta)
        return len(arrived) == 1

    def wake(self) -> None:
        """Tell the listener that something has arrived: once for all of it."""
        if self._listener is not None:
            self._listener()

    def fail(self, error: BaseException) -> None:
        """Make the next `drain` raise `error`, once what arrived before has been taken."""
        if self._error is None:
            self._error = error
            self.wake()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on at every `wake`, in the current context.

        A task that is woken for each step costs more than all that is done with a token. It must not raise.
        """
        context = copy_context()
        self._listener = lambda: context.run(listener)

    def drain(self) -> list[TokenDelta]:
        """What has arrived, which may be nothing. Raises what `fail` was given, if nothing is left.

        Of very much it is a part: the reader is woken for the rest when others have had their turn.
        """
        if not self._arrived and self._error is not None:
            raise self._error
        arrived, self._arrived = self._arrived[:MAX_DRAINED], self._arrived[MAX_DRAINED:]
        if self._arrived or self._error is not None:
            asyncio.get_running_loop().call_soon(self.wake)
        return arrived
