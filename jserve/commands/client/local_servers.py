"""Servers of this user that `jserve run` has started: a file for each says where it is and what it serves."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_LEAVE_S = 40.0
"""A server that is told to stop lets its answers finish for half a minute."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A process that serves `model` at `url` since `started` (Unix time), and writes to `log`."""

    pid: int
    url: str
    model: str
    started: float
    log: str

    @property
    def is_alive(self) -> bool:
        """Whether the process is there, and is a server still: ids of processes are given again."""
        with contextlib.suppress(OSError):
            return b"jserve" in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return False

    def write(self) -> None:
        """Let other commands find it."""
        path = folder() / f"{self.pid}.json"
        path.write_text(json.dumps(asdict(self)))

    def stop(self) -> bool:
        """Tell it to stop and wait until it has; False where it has not within its time."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        end = time.monotonic() + _LEAVE_S
        while self.is_alive and time.monotonic() < end:
            time.sleep(0.05)
        return not self.is_alive


def folder() -> Path:
    """Where the files are, readable by this user alone."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(root, "jserve", "servers")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def local_servers() -> Iterator[LocalServer]:
    """Those that are alive, the oldest first; what the others have left is removed."""
    servers = []
    for path in folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            server = LocalServer(**json.loads(path.read_text()))
            if server.is_alive:
                servers.append(server)
                continue
            Path(server.log).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    yield from sorted(servers, key=lambda server: server.started)
