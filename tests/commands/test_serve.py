"""The `jserve` command as a process: exit codes, signals, and that nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.live_server import fake_engine
from tests.patience import PATIENCE_S, wait_until

LOADS_FOR_EVER = ("--load-held-by", ".")
"""Options of an engine that never becomes ready."""


class Command:
    """A running `jserve`."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "jserve", *arguments], stderr=subprocess.PIPE, text=True)

    def finish(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, text = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, text


@pytest.fixture
def start(model_dir: Path) -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def run(*arguments: str, engine: tuple[str, ...] = ()) -> Command:
        command = ["--model", str(model_dir), "--engine-command", " ".join(fake_engine(*engine)), *arguments]
        commands.append(Command(command))
        return commands[-1]

    yield run
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(port: int, path: str) -> int:
    """The status of a GET, 0 where nobody answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code
    except httpx.TransportError:
        return 0


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_port_in_use_is_told_before_the_engine_starts(start: Callable[..., Command]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        code, text = start("--port", str(taken), engine=LOADS_FOR_EVER).finish()
    assert code == 1
    assert text == (
        f"jserve: port {taken} on 127.0.0.1 is in use by another program; stop it, or choose another with --port\n"
    )


def test_fatal_engine_is_told_plainly(start: Callable[..., Command]) -> None:
    code, text = start("--port", "0", engine=("--fatal", "'no room'")).finish()
    assert code == 1
    assert text.splitlines()[-1] == "jserve: no room"
    assert "Traceback" not in text


def test_model_that_is_not_there(start: Callable[..., Command]) -> None:
    code, text = start("--port", "0", "--model", "/nowhere", engine=LOADS_FOR_EVER).finish()
    assert code == 1
    assert text.splitlines()[-1].startswith("jserve: /nowhere does not exist")
    assert "Traceback" not in text


def test_sigterm_drains_and_leaves_nothing(start: Callable[..., Command], port: int) -> None:
    command = start("--port", str(port), engine=("--step-ms", "20"))
    wait_until(lambda: status_of(port, "/ready") == 200)
    children = _children(command.process.pid)
    texts: list[Any] = []
    body = {"prompt": "hello ", "max_tokens": 30, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=PATIENCE_S) as response:
        lines = response.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGTERM)
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
    assert len(texts) == 29
    code, text = command.finish()
    assert code == 0
    assert "ready: http://127.0.0.1" in text
    assert "; 6 of 9 programs follow behind" in text
    assert not any(map(_is_alive, children))


def test_second_signal_ends_it_at_once(start: Callable[..., Command], port: int) -> None:
    command = start("--port", str(port), engine=("--step-ms", "1000"))
    wait_until(lambda: status_of(port, "/ready") == 200)
    children = _children(command.process.pid)
    body = {"prompt": "hello ", "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=PATIENCE_S) as response:
        lines = response.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGINT)
        wait_until(lambda: status_of(port, "/ready") == 503)
        command.process.send_signal(signal.SIGINT)
        code, _ = command.finish()
    assert code == 1
    wait_until(lambda: not any(map(_is_alive, children)))


@pytest.mark.parametrize("engine", [(), LOADS_FOR_EVER], ids=["ready", "loading"])
def test_engine_does_not_outlive_a_server_that_was_killed(
    start: Callable[..., Command], port: int, engine: tuple[str, ...]
) -> None:
    command = start("--port", str(port), engine=engine)
    wait_until(lambda: status_of(port, "/health" if engine else "/ready") == 200)
    children = _children(command.process.pid)
    for child in children:
        assert os.getsid(child) == child, "a session of its own keeps Ctrl-C away from it"
    command.process.kill()
    command.process.wait()
    wait_until(lambda: not any(map(_is_alive, children)))


def test_health_answers_before_much_is_imported_and_jax_is_never_loaded(
    start: Callable[..., Command], port: int
) -> None:
    command = start("--port", str(port), engine=LOADS_FOR_EVER)
    wait_until(lambda: status_of(port, "/health") == 200)
    times = psutil.Process(command.process.pid).cpu_times()
    assert times.user + times.system < 3.0, "of CPU time; it was 0.7 when this was written"
    wait_until(lambda: "starting" in httpx.get(f"http://127.0.0.1:{port}/ready", timeout=PATIENCE_S).text)
    maps = Path(f"/proc/{command.process.pid}/maps").read_text()
    assert "uvloop" in maps
    assert "jaxlib" not in maps
    assert "torch" not in maps


def test_version_and_help() -> None:
    command = [sys.executable, "-m", "jserve"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("jserve ")
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--gpu-memory-utilization" in text
    assert "(default: 0.92)" in text
    assert "--engine-command" not in text
