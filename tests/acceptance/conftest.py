"""A live server with the real model, started as a user starts it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.patience import PATIENCE_S, wait_until

READY_WITHIN_S = 400


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running `jserve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path = Path(os.devnull)
    """Where its standard error goes."""

    def metric(self, name: str) -> float:
        """The sum over labels of a metric."""
        lines = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


StartServer = Callable[..., LiveServer]


@pytest.fixture(scope="module")
def start_server(real_gguf: Path, executables: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers with further flags, maybe another model; all are stopped at the end, and must leave with 0."""
    servers: list[LiveServer] = []

    def start(*flags: str) -> LiveServer:
        port = free_port()
        command = [sys.executable, "-m", "jserve", "--model", str(real_gguf), "--port", str(port)]
        log = (tmp_path_factory.mktemp("server") / "log.txt").open("wb")
        process = subprocess.Popen([*command, "--compile-cache-dir", executables, *flags], stderr=log)
        server = LiveServer(f"http://127.0.0.1:{port}", process, Path(log.name))
        servers.append(server)
        wait_until_ready(server, log.name)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.terminate()
            assert server.process.wait(PATIENCE_S) == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_until_ready(server: LiveServer, log: str = "") -> None:
    """Return when the server serves; fail with its log where it does not."""

    def is_over() -> bool:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/ready").status_code == 200:
                return True
        return server.process.poll() is not None

    try:
        wait_until(is_over, READY_WITHIN_S)
        assert server.process.poll() is None, "the server ended"
    except AssertionError as error:
        pytest.fail(f"the server is not ready: {error}; {Path(log).read_text()[-3000:] if log else ''}")
