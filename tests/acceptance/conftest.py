"""A live server with the real model, started as a user starts it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

READY_WITHIN_S = 300


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A running `jserve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path = Path(os.devnull)
    """Where its standard error goes."""

    def metric(self, name: str) -> float:
        """The sum over labels of a metric."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
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
            assert server.process.wait(30) == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_until_ready(server: LiveServer, log: str = "") -> None:
    """Return when the server serves; fail with its log where it does not."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{server.url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.process.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the server is not ready: {Path(log).read_text()[-3000:] if log else ''}")
