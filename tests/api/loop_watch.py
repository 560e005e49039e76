"""Whether a request holds the server's event loop: the most CPU time that the loop's thread spends without a pause.

Time of the thread, not of the clock on the wall: what else runs on the machine does not count.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from types import TracebackType

from tests.api.live_server import LiveServer

MOST_HELD_S = 0.05
"""What one request may hold the loop for. Everybody's tokens wait meanwhile."""
_TICK_S = 0.001
_TRIES = 5


def least_held_s(server: LiveServer, send: Callable[[], object]) -> float:
    """The least of a few tries: what holds the loop always does, a processor that is shared only now and then."""
    least = float("inf")
    for _ in range(_TRIES):
        with LoopWatch(server) as watch:
            send()
        least = min(least, watch.longest_s)
        if least < MOST_HELD_S:
            break
    return least


class LoopWatch:
    """`with LoopWatch(server) as watch: ...; assert watch.longest_s < MOST_HELD_S`.

    A timer goes off in the loop every millisecond. The CPU time between two of them was spent by what stood between:
    one callback, or some short ones.
    """

    def __init__(self, server: LiveServer) -> None:
        self._loop = server.loop
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.longest_s = 0.0

    def __enter__(self) -> "LoopWatch":
        gc.collect()
        gc.freeze()  # As `jserve serve` does once it has loaded: what pytest keeps is not the server's.
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        gc.unfreeze()

    async def _begin(self) -> None:
        self._last = time.thread_time()
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    async def _end(self) -> None:
        self._look()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._look()
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _look(self) -> None:
        now = time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
