"""Turns at something that few can have at once, dealt out by whose they are: one who asks for many delays no other."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class FairTurns:
    """`count` turns at once. Who waits is served in a circle of owners, and each owner's in order of arrival."""

    def __init__(self, count: int) -> None:
        self._num_free = count
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        if self._num_free:
            self._num_free -= 1
        else:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(owner, deque()).append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():  # The turn came and the end with it.
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            owner, waiters = self._waiting.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                self._waiting[owner] = waiters
            if not waiter.cancelled():
                waiter.set_result(None)
                return
        self._num_free += 1
