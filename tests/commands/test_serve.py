"""The `jserve` command as a process: exit codes, signals, and that nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.live_server import fake_engine


class Command:
    """A running `jserve`."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "jserve", *arguments], stderr=subprocess.PIPE, text=True)

    def finish(self, timeout_s: float = 15.0) -> tuple[int, str]:
        """Exit code and standard error."""
        _, text = self.process.communicate(timeout=timeout_s)
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


def _wait(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _status(port: int, path: str) -> int:
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
        code, text = start("--port", str(taken), engine=("--load-s", "9")).finish()
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
    code, text = start("--port", "0", "--model", "/nowhere", engine=("--load-s", "5")).finish()
    assert code == 1
    assert text.splitlines()[-1].startswith("jserve: /nowhere does not exist")
    assert "Traceback" not in text


def test_sigterm_drains_and_leaves_nothing(start: Callable[..., Command], port: int) -> None:
    command = start("--port", str(port), engine=("--step-ms", "20"))
    _wait(lambda: _status(port, "/ready") == 200)
    children = _children(command.process.pid)
    texts: list[Any] = []
    body = {"prompt": "hello ", "max_tokens": 30, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
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
    command = start("--port", str(port), engine=("--step-ms", "100"))
    _wait(lambda: _status(port, "/ready") == 200)
    children = _children(command.process.pid)
    body = {"prompt": "hello ", "max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGINT)
        _wait(lambda: _status(port, "/ready") == 503)
        command.process.send_signal(signal.SIGINT)
        code, _ = command.finish(timeout_s=3)
    assert code == 1
    _wait(lambda: not any(map(_is_alive, children)))


@pytest.mark.parametrize("load_s", ["0", "60"])
def test_engine_does_not_outlive_a_server_that_was_killed(
    start: Callable[..., Command], port: int, load_s: str
) -> None:
    command = start("--port", str(port), engine=("--load-s", load_s))
    _wait(lambda: _status(port, "/ready" if load_s == "0" else "/health") == 200)
    children = _children(command.process.pid)
    for child in children:
        assert os.getsid(child) == child, "a session of its own keeps Ctrl-C away from it"
    command.process.kill()
    command.process.wait()
    _wait(lambda: not any(map(_is_alive, children)), timeout_s=2)


def test_health_answers_within_a_second_and_jax_is_never_loaded(start: Callable[..., Command], port: int) -> None:
    began = time.monotonic()
    command = start("--port", str(port), engine=("--load-s", "30"))
    _wait(lambda: _status(port, "/health") == 200)
    assert time.monotonic() - began < 3.0, "1 s on an idle machine; tests share theirs"
    _wait(lambda: "starting" in httpx.get(f"http://127.0.0.1:{port}/ready").text)
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
