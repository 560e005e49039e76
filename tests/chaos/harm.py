"""What is done to a server: its engine is killed and stopped, its workers are, and its connections are used up."""

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections import Counter

import psutil

_ENGINE, _WORKER = "tests.fake_engine", "render_worker"
_IDLE_CONNECTIONS = 236
"""As many as the server has places for."""
_PAUSE_S = (0.5, 3.0)


class Harm:
    """Does one thing after the other, at random, until it is cancelled."""

    def __init__(self, pid: int, port: int, seed: int) -> None:
        self._server = psutil.Process(pid)
        self._port = port
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.killed_at: list[float] = []
        """When engines were killed, on the monotonic clock."""

    async def run(self) -> None:
        """Go on until cancelled. What is stopped then goes on."""
        harms = (
            self.kill_engine,
            self.stop_engine,
            self.kill_worker,
            self.stop_worker,
            self.idle_connections,
            self.hang_up,
        )
        while True:
            await asyncio.sleep(self._random.uniform(*_PAUSE_S))
            harm = self._random.choice(harms)
            with contextlib.suppress(psutil.NoSuchProcess):
                await harm()
            self.done[harm.__name__] += 1

    async def kill_engine(self) -> None:
        """The engine dies, as by the kernel's hand when memory is short."""
        self.killed_at.append(time.monotonic())
        self._signal(_ENGINE, signal.SIGKILL)

    async def stop_engine(self) -> None:
        """The engine stands still for a while."""
        await self._stop(_ENGINE)

    async def kill_worker(self) -> None:
        """The process that renders templates dies."""
        self._signal(_WORKER, signal.SIGKILL)

    async def stop_worker(self) -> None:
        """The process that renders templates stands still for a while."""
        await self._stop(_WORKER)

    async def idle_connections(self) -> None:
        """Many connections say nothing."""
        connections = []
        try:
            for _ in range(_IDLE_CONNECTIONS):
                with contextlib.suppress(OSError):
                    connections.append(socket.create_connection(("127.0.0.1", self._port), timeout=5))
            await asyncio.sleep(0.5)
        finally:
            for connection in connections:
                connection.close()

    async def hang_up(self) -> None:
        """Everything is read again in the midst of it."""
        self._server.send_signal(signal.SIGHUP)

    async def _stop(self, what: str) -> None:
        stopped = self._signal(what, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(0.2, 1.5))
        finally:
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def _signal(self, what: str, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the server's children whose command has `what`."""
        reached = []
        for child in self._server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(what in word for word in child.cmdline()):
                    child.send_signal(number)
                    reached.append(child)
        return reached
