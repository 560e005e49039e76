"""A neighbour: a stream that runs while a test misbehaves, and how long the server's event loop is held up meanwhile.

Held up is what keeps the loop from its next turn: its own work, or another thread's that holds Python's lock. Both
cost this process CPU time, which is counted in place of the clock's, so that other programs on the machine change
nothing.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.api.live_server import LiveServer
from tests.patience import PATIENCE_S, wait_until

T = TypeVar("T")
LOOK_S = 0.005


def undisturbed(server: LiveServer, action: Callable[[], T], limit_s: float) -> T:
    """What `action` returns, while which nothing held up the server's loop, and a neighbour's stream, for `limit_s`.

    It has three tries: what holds up the server does so every time, a collection of garbage does not.
    """
    held_up = []
    for _ in range(3):
        with StreamPace(server) as neighbour:
            result = action()
        held_up.append(neighbour.longest_s)
        if neighbour.longest_s < limit_s:
            return result
    raise AssertionError(f"the server was held up for {held_up} s of CPU time, each time more than {limit_s}")


class StreamPace:
    """`with StreamPace(server) as pace: ...; assert pace.longest_s < 0.1`.

    A stream runs from before the block until after it. `longest_s` is the most CPU time, in seconds, between two
    looks of the server's loop at the clocks.
    """

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._under_way = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.longest_s = 0.0
        self.num_chunks = 0
        self._num_looks = 0

    def __enter__(self) -> "StreamPace":
        self._thread.start()
        assert self._under_way.wait(PATIENCE_S)
        self._looking = asyncio.run_coroutine_threadsafe(self._look(), self._server.loop)
        wait_until(lambda: self._num_looks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            chunks, looks = self.num_chunks + 4, self._num_looks + 2
            wait_until(lambda: self.num_chunks >= chunks and self._num_looks >= looks)
        self._looking.cancel()
        self._over.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    async def _look(self) -> None:
        """In the server's loop. Where another thread works without Python's lock, the loop may wait for a core while
        that one has its own: the time that the loop's thread waited for a core is no more than the machine's.
        """
        while True:
            self._num_looks += 1
            cpu, clock, waited = time.process_time(), time.monotonic(), waited_for_a_core()
            await asyncio.sleep(LOOK_S)
            here = time.monotonic() - clock - (waited_for_a_core() - waited)
            self.longest_s = max(self.longest_s, min(time.process_time() - cpu, here))

    def _run(self) -> None:
        while not self._over.is_set():
            self._stream()

    def _stream(self) -> None:
        body = json.dumps({"prompt": "abc", "max_tokens": 250, "ignore_eos": True, "stream": True}).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        port = int(self._server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(head % len(body) + body)
            connection.recv(1 << 16)
            while not self._over.is_set():
                data = connection.recv(1 << 16)
                self.num_chunks += 1
                self._under_way.set()
                if not data or b"[DONE]" in data:
                    return


def waited_for_a_core() -> float:
    """Seconds that this thread was ready to run and did not, as Linux counts them; 0 where it does not."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0
