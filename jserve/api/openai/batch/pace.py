"""How many lines of batches are answered at once, so that those who wait for an answer hardly notice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from jserve.api.generation.generation import Generator
from jserve.api.supervisor.client import EngineClient

_LOOK_S = 0.1


class Pace:
    """Lines take turns, in the order in which they ask. Beside live requests one line runs at a time."""

    def __init__(self, generator: Generator, client: EngineClient, share: int = 2) -> None:
        """While nobody else is there, lines take one in `share` of the engine's places."""
        self._generator = generator
        self._client = client
        self._share = share
        self._queue = asyncio.Lock()
        self._ended = asyncio.Event()
        self.num_running = 0

    async def take_turn(self) -> None:
        """Wait for a place, which `end_turn` frees."""
        async with self._queue:
            await self._wait_until_below(self._most)
            self.num_running += 1

    def end_turn(self) -> None:
        """A line that had its turn is done."""
        self.num_running -= 1
        self._ended.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """A turn during which no other line runs."""
        async with self._queue:
            await self._wait_until_below(lambda: 1)
            self.num_running += 1
            try:
                yield
            finally:
                self.end_turn()

    async def _wait_until_below(self, most: Callable[[], int]) -> None:
        while self.num_running >= most():
            self._ended.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._ended.wait()
            except TimeoutError:
                pass  # Live requests come and go without a word.

    def _most(self) -> int:
        if self._generator.num_open > self.num_running:
            return 1
        ready = self._client.ready
        return max(1, (ready.max_num_seqs if ready is not None else 1) // self._share)
