"""A neighbour: a stream that runs while a test misbehaves, and measures the longest gap between its tokens."""

import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from tests.api.live_server import LiveServer

T = TypeVar("T")


def undisturbed(server: LiveServer, action: Callable[[], T], limit_s: float) -> T:
    """What `action` returns, during which a neighbour's tokens were never further apart than `limit_s`.

    The limit is that of a machine that does nothing else. It has three tries: what holds up the server does so
    every time, what else runs on the machine does not.
    """
    gaps = []
    for _ in range(3):
        with StreamPace(server) as neighbour:
            result = action()
        gaps.append(neighbour.longest)
        if neighbour.longest < limit_s or neighbour.longest < limit_s * contention():
            return result
    raise AssertionError(f"the neighbour waited {gaps} s for a token, each time more than {limit_s}")


def contention() -> float:
    """How much longer than on an idle machine work takes here now, at least 1."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < 0.05:
        pass
    return max(1.0, (time.perf_counter() - wall) / 0.05)


class StreamPace:
    """`with StreamPace(server) as pace: ...; assert pace.longest < 0.1`. The longest gap is in seconds.

    The engine must be slow (`--step-ms`), so that the stream lasts as long as the block.
    """

    def __init__(self, server: LiveServer) -> None:
        self._port = int(server.url.rpartition(":")[2])
        self._over = threading.Event()
        self._under_way = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.longest = 0.0
        self.num_chunks = 0

    def __enter__(self) -> "StreamPace":
        self._thread.start()
        assert self._under_way.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wanted, deadline = self.num_chunks + 4, time.monotonic() + 10
        while self.num_chunks < wanted and time.monotonic() < deadline:  # The gap that is open now must be seen.
            time.sleep(0.002)
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if kind is None:
            assert self.num_chunks >= wanted, "the neighbour got its tokens"

    def _run(self) -> None:
        while not self._over.is_set():
            self._stream()

    def _stream(self) -> None:
        body = json.dumps({"prompt": "abc", "max_tokens": 250, "ignore_eos": True, "stream": True}).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port), timeout=10) as connection:
            connection.sendall(head % len(body) + body)
            connection.recv(1 << 16)  # The first tokens wait for the prompt, not for the pace of the others.
            last = time.monotonic()
            while not self._over.is_set():
                data = connection.recv(1 << 16)
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
                self.num_chunks += 1
                last = now
                self._under_way.set()
                if not data or b"[DONE]" in data:
                    return
