"""One engine process: how it is started, found dead, and never left behind.

It is told its configuration on stdin, talks over an inherited socket, and lives in a session of its own, so
that Ctrl-C in the terminal reaches the server only. It leaves when the socket ends, or dies with the server.
"""

import asyncio
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import msgspec

from jserve.api.supervisor.environment import child_environment
from jserve.config import EngineConfig
from jserve.errors import StartupError
from jserve.ipc import FrameReader, encode_frame
from jserve.protocol import ToEngine

_PR_SET_PDEATHSIG = 1
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
"""What the system lacks now and may have in a moment: descriptors, processes, memory."""
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class LaunchError(StartupError):
    """The process could not be started. `is_passing`: the system lacks the means now, and may have them later."""

    def __init__(self, message: str, *, is_passing: bool) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class EngineHandle:
    """A running engine. `frames` are its messages; their end means that it is gone."""

    def __init__(
        self,
        popen: "subprocess.Popen[bytes]",
        frames: FrameReader,
        transport: asyncio.WriteTransport,
    ) -> None:
        self._popen = popen
        self.frames = frames
        self._transport = transport
        self._exited = asyncio.Event()
        self._pid_fd = _watch_exit(popen.pid, self._exited.set)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send(self, messages: Sequence[ToEngine]) -> None:
        """Queue messages, in one write, so that they arrive together; an engine that is gone swallows them."""
        if not self._transport.is_closing():
            self._transport.write(b"".join([encode_frame(message) for message in messages]))

    async def wait_for_exit(self) -> None:
        """Return when the process has exited."""
        await self._exited.wait()

    async def reap(self, timeout_s: float) -> int:
        """Wait up to `timeout_s` for the exit, then kill. Returns the exit code, negative for a signal."""
        self._transport.close()
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        if self._exited.is_set():
            self.kill()  # What it started and left behind: its group outlives it until it is reaped.
        while (code := self._popen.poll()) is None:
            if clock() >= deadline:
                self.kill()
                deadline = float("inf")
            await asyncio.sleep(0.005)
        self._unwatch()
        self._exited.set()
        return code

    def terminate(self) -> None:
        """SIGTERM to the engine alone, which leaves once its interpreter runs again."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self._popen.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the engine and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def _unwatch(self) -> None:
        if self._pid_fd is not None:
            asyncio.get_running_loop().remove_reader(self._pid_fd)
            os.close(self._pid_fd)
            self._pid_fd = None


@dataclass(frozen=True, slots=True)
class LaunchedEngine:
    """A process that has been started and that nobody listens to yet."""

    popen: "subprocess.Popen[bytes]"
    connection: socket.socket

    async def attach(self) -> EngineHandle:
        """Listen to it, on the running event loop."""
        self.connection.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, frames = await loop.create_unix_connection(FrameReader, sock=self.connection)
        return EngineHandle(self.popen, frames, transport)


def launch_engine(command: Sequence[str], config: EngineConfig) -> LaunchedEngine:
    """Start `command --fd N` with the configuration as JSON on its stdin.

    Needs no event loop, so that the engine can start before the server has imported its own libraries.
    Raises LaunchError where the command cannot be run.
    """
    with ExitStack() as opened:
        try:
            ours, theirs = map(opened.enter_context, socket.socketpair())
            popen = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            message = f"the engine process cannot be started: {error} (command: {' '.join(command)})"
            raise LaunchError(message, is_passing=error.errno in _PASSING) from error
        theirs.close()
        opened.pop_all()
    assert popen.stdin is not None
    with suppress(BrokenPipeError), popen.stdin:
        popen.stdin.write(msgspec.json.encode(config))
    return LaunchedEngine(popen, ours)


def die_with_parent() -> None:
    """In the new process: let the kernel kill it with the server, even while it compiles and reads nothing.

    Runs between fork and exec, where only a system call is safe; so the library is loaded beforehand.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch_exit(pid: int, on_exit: Callable[[], None]) -> int | None:
    """Call `on_exit` when the process ends, even if a child of it keeps the socket open."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        pid_fd = os.pidfd_open(pid)
    except OSError:
        return None
    loop = asyncio.get_running_loop()

    def exited() -> None:
        loop.remove_reader(pid_fd)
        on_exit()

    loop.add_reader(pid_fd, exited)
    return pid_fd
