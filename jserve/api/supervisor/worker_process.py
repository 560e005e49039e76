"""A helper process that serves one job at a time and may be lost: what a job does to it is that job's loss only.

Frames are a length and a body, both ways. The process says with an empty frame that it is ready.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from jserve.api.supervisor.environment import child_environment
from jserve.api.supervisor.process import die_with_parent
from jserve.text.templates.job_frames import LENGTH

logger = logging.getLogger(__name__)

_START_S = 60.0
"""Seconds to import, and to take in the first frame, on the slowest machine."""
_PATIENCE = 4
_REAP_S, _REAP_TRIES = 0.01, 100
_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerLostError(Exception):
    """The process took too long over a job and was killed, or has ended. The message says which."""


class WorkerDiedError(WorkerLostError):
    """It has ended, or could not be started, twice. Whether the job is at fault nobody knows.

    `is_from_outside`: the kernel (for want of memory) or somebody killed it, or it could not be started.
    """

    def __init__(self, message: str, *, is_from_outside: bool = True) -> None:
        super().__init__(message)
        self.is_from_outside = is_from_outside


class WorkerProcess:
    """`python -m MODULE FD`, started when it is first needed and again after it was lost."""

    def __init__(self, module: str, setup: bytes, limit_s: float) -> None:
        """`setup` is the first frame of every start. A job may take `limit_s` seconds, the start not included.

        They are of processor time: on a busy machine an innocent job waits. Of the clock's it may take
        `_PATIENCE` times as many.
        """
        self._module = module
        self._setup = setup
        self._limit_s = limit_s
        self._turn = asyncio.Lock()
        self.num_waiting = 0
        """Jobs that are being served or wait for their turn."""
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def call(self, request: bytes) -> bytes:
        """The answer of the process. Raises WorkerLostError.

        A process that ends in the middle of a job may have been killed by anybody: the job gets another one.
        """
        self.num_waiting += 1
        try:
            return await self._serve(request)
        except WorkerDiedError as why:
            logger.warning("a job for %s %s; it is tried once more in a new one", self._module, why)
            return await self._serve(request)
        finally:
            self.num_waiting -= 1

    async def _serve(self, request: bytes) -> bytes:
        async with self._turn:
            is_answered = False
            try:
                if self._popen is None or self._popen.poll() is not None:
                    await self._launch()
                answer = await self._exchange_in_time(request)
                is_answered = True
                return answer
            except TimeoutError:
                raise WorkerLostError(f"took more than {self._limit_s:g} s") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                is_killed = await self._was_killed()
                raise WorkerDiedError("overwhelmed the process that did it", is_from_outside=is_killed) from None
            except OSError as error:
                raise WorkerDiedError(f"found no process to do it: {error}") from error
            finally:
                if not is_answered:  # Also where the caller was cancelled: its answer must not become the next one's.
                    self.stop()

    async def _exchange_in_time(self, request: bytes) -> bytes:
        """The answer. Raises TimeoutError where the job has used its seconds, or waited too long for a processor."""
        exchange = asyncio.ensure_future(self._exchange(request))
        began, last = self._cpu_s(), time.monotonic() + _PATIENCE * self._limit_s
        left = self._limit_s
        try:
            while not (await asyncio.wait({exchange}, timeout=max(left, 0.05)))[0]:
                left = self._limit_s - (self._cpu_s() - began)
                if left <= 0 or time.monotonic() > last:
                    raise TimeoutError
            return exchange.result()
        finally:
            exchange.cancel()

    def _cpu_s(self) -> float:
        """Seconds of processor time that the process has used; of the clock's where the system does not tell."""
        assert self._popen is not None
        try:
            fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    async def _was_killed(self) -> bool:
        """Whether a signal from outside ended the process. Its own limits end it by others: SIGSEGV, SIGABRT."""
        if self._popen is None:
            return False
        for _ in range(_REAP_TRIES):
            if (code := self._popen.poll()) is not None:
                return code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
            await asyncio.sleep(_REAP_S)  # The socket's end is seen a moment before the process's.
        return False

    async def start(self) -> None:
        """Start the process where it does not run."""
        async with self._turn:
            if self._popen is None:
                await self._launch()

    def stop(self) -> None:
        """Kill the process, if it runs."""
        if self._popen is None:
            return
        self._writer.close()
        self._popen.kill()
        self._popen.wait()  # A process that is killed is gone within a millisecond.
        self._popen = None

    async def _launch(self) -> None:
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as opened:
            opened.enter_context(ours)
            popen = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            opened.pop_all()
        ours.setblocking(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._popen = popen
        async with asyncio.timeout(_START_S):
            await self._exchange(self._setup)

    async def _exchange(self, request: bytes) -> bytes:
        self._writer.write(LENGTH.pack(len(request)) + request)
        await self._writer.drain()
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return await self._reader.readexactly(length)
