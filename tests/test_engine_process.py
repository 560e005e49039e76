"""The engine's loop towards its socket."""

import socket
import threading
import time

import pytest

from jserve import engine
from jserve.engine import EngineProcess
from jserve.ipc import EngineSocket, encode_frame
from jserve.protocol import EngineStats, Request, SamplingParams, Shutdown, TokenDelta


class SilentCore:
    """Makes steps that yield nothing, as while a long prompt is computed."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_deferred = 0
        self.runner = self
        self.is_idle = True

    def add(self, request: Request) -> TokenDelta | None:
        self.is_idle = False
        return None

    def take_news(self) -> list[tuple[str, str]]:
        return []

    def step(self) -> list[TokenDelta]:
        time.sleep(0.005)
        self.num_steps += 1
        return []

    def stats(self) -> EngineStats:
        return EngineStats(num_steps=self.num_steps)


def test_steps_without_tokens_are_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a prompt that takes longer than the stall timeout looks like an engine that hangs."""
    monkeypatch.setattr(engine, "_HEARTBEAT_S", 0.05)
    ours, theirs = socket.socketpair()
    core = SilentCore()
    process = EngineProcess(core, EngineSocket(theirs))  # type: ignore[arg-type]
    thread = threading.Thread(target=process.run)
    thread.start()
    ours.sendall(encode_frame(Request("a", [1], SamplingParams())))
    ours.settimeout(5)
    received = [len(ours.recv(65536)) for _ in range(5)]
    assert all(received)
    assert core.num_steps > 5
    ours.sendall(encode_frame(Shutdown()))
    thread.join(5)
    assert not thread.is_alive()
    frames = 5
    assert frames < core.num_steps / 3, "not one per step"
    ours.close()
    theirs.close()
