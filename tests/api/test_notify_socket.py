"""What systemd hears of a server: each line over a real socket."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jserve.api.notify_socket import NotifySocket
from tests.api.live_server import StartServer
from tests.patience import PATIENCE_S

_BODY = {"prompt": "hello ", "max_tokens": 50}


class Listener:
    """The socket of a service manager; `lines` is all that it has heard, and `until` waits for a line."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_S)
        self.lines: list[str] = []

    def until(self, line: str) -> None:
        while not any(heard.startswith(line) for heard in self.lines):
            self.lines += self.socket.recv(4096).decode().split("\n")

    def drop(self) -> None:
        """Forget what was heard."""
        self.lines = []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    address = str(tmp_path / "notify")
    listener = Listener(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield listener
    listener.socket.close()


def test_ready_is_told_only_once_a_request_can_be_answered(
    start_server: StartServer, systemd: Listener, tmp_path: Path
) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False)
    systemd.until("STATUS=the engine is still starting: loading weights 1 of 4")
    assert "READY=1" not in systemd.lines
    assert live.http.post("/v1/completions", json=_BODY).status_code == 503
    hold.unlink()
    systemd.until("READY=1")
    assert live.http.post("/v1/completions", json=_BODY).status_code == 200
    systemd.until("STATUS=ready")


def test_an_engine_that_dies_is_told_and_ready_is_not_said_twice(start_server: StartServer, systemd: Listener) -> None:
    live = start_server()
    systemd.until("STATUS=ready")
    systemd.drop()
    assert live.engine_pid is not None
    os.kill(live.engine_pid, signal.SIGKILL)
    systemd.until("STATUS=ready")
    assert any(line.startswith("STATUS=the engine") for line in systemd.lines)
    assert "READY=1" not in systemd.lines


def test_ready_is_told_again_where_nobody_read_what_came_before(
    start_server: StartServer, systemd: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of life fill the socket, so that READY=1 does not fit at first."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    start_server()
    systemd.until("READY=1")


def test_stopping_is_told_before_open_requests_are_done(
    start_server: StartServer, systemd: Listener, tmp_path: Path
) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--steps-held-by", str(hold), shutdown_timeout_s=PATIENCE_S)
    thread = threading.Thread(target=lambda: live.http.post("/v1/completions", json=_BODY))
    thread.start()
    live.wait_for(lambda: live.server.context.generator.num_open == 1)
    live.begin_stop()
    systemd.until("STOPPING=1")
    systemd.until("STATUS=stopping: 1 requests are still open")
    assert live.server.context.generator.num_open == 1
    hold.unlink()
    thread.join(PATIENCE_S)


def test_signs_of_life_come_while_it_loads_serves_and_drains(
    start_server: StartServer, systemd: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    loading, steps = tmp_path / "loading", tmp_path / "steps"
    loading.touch()
    steps.touch()
    live = start_server(
        "--load-held-by", str(loading), "--steps-held-by", str(steps), wait=False, shutdown_timeout_s=PATIENCE_S
    )

    def lives_on() -> None:
        systemd.drop()
        for _ in range(3):
            systemd.until("WATCHDOG=1")
            systemd.drop()

    systemd.until("STATUS=the engine is still starting")
    lives_on()
    loading.unlink()
    systemd.until("READY=1")
    lives_on()
    thread = threading.Thread(target=lambda: live.http.post("/v1/completions", json=_BODY))
    thread.start()
    live.wait_for(lambda: live.server.context.generator.num_open == 1)
    live.begin_stop()
    systemd.until("STOPPING=1")
    lives_on()
    steps.unlink()
    thread.join(PATIENCE_S)


def test_an_event_loop_that_stands_still_gives_no_sign_of_life(
    start_server: StartServer, systemd: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    live = start_server(wait=False)
    begun, end = threading.Event(), threading.Event()

    def stand_still() -> None:
        begun.set()
        end.wait(PATIENCE_S)

    systemd.until("READY=1")
    live.loop.call_soon_threadsafe(stand_still)
    assert begun.wait(PATIENCE_S)
    systemd.socket.setblocking(False)
    with pytest.raises(BlockingIOError):  # What was sent before is read, and nothing follows.
        systemd.until("STATUS=never")
    end.set()
    systemd.socket.settimeout(PATIENCE_S)
    systemd.drop()
    systemd.until("WATCHDOG=1")


def test_an_abstract_name_is_one_without_a_file() -> None:
    address = f"@jserve-test-{os.getpid()}"
    listener = Listener(address)
    notify = NotifySocket({"NOTIFY_SOCKET": address})
    notify.tell("READY=1", "STATUS=two\nlines")
    assert listener.socket.recv(4096) == b"READY=1\nSTATUS=two lines"
    notify.close()
    notify.tell("READY=1")
    listener.socket.close()


def test_nobody_is_told_where_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    silent = NotifySocket({"WATCHDOG_USEC": "1000000"})
    silent.tell("READY=1")
    assert silent.ping_interval_s == 0
    with caplog.at_level(logging.WARNING):
        NotifySocket({"NOTIFY_SOCKET": "vsock:2:1"}).tell("READY=1")
        assert "neither a path" in caplog.text
        gone = NotifySocket({"NOTIFY_SOCKET": str(tmp_path / "gone")})
        for _ in range(3):
            gone.tell("WATCHDOG=1")
        gone.close()
    assert caplog.text.count("systemd cannot be told WATCHDOG=1") == 1


@pytest.mark.parametrize(
    ("pid", "period", "interval"), [(None, "2000000", 1.0), ("1", "2000000", 0.0), (None, "soon", 0.0), (None, "", 0.0)]
)
def test_the_watchdog_is_for_the_process_that_it_names(pid: str | None, period: str, interval: float) -> None:
    environment = {"NOTIFY_SOCKET": "@jserve-nobody", "WATCHDOG_USEC": period}
    notify = NotifySocket(environment | ({"WATCHDOG_PID": pid} if pid else {}))
    assert notify.ping_interval_s == interval
    notify.close()
