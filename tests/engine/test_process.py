"""The engine's loop towards its socket."""

import socket
import threading
import time

import msgspec
import pytest

from jserve.engine import process as engine
from jserve.engine.process import EngineProcess, ProgramReport
from jserve.ipc import EngineSocket, encode_frame
from jserve.protocol import (
    EngineCompiled,
    EngineStats,
    FromEngine,
    ProgramCounts,
    Request,
    SamplingParams,
    Shutdown,
    TokenDelta,
)


class SilentCore:
    """Makes steps that yield nothing, as while a long prompt is computed."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_deferred = 0
        self.is_idle = True

    def add(self, request: Request) -> TokenDelta | None:
        self.is_idle = False
        return None

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


class FewPrograms:
    """A table that gets a program."""

    def __init__(self) -> None:
        self.counts = ProgramCounts(ready=1, failed=0, total=2)
        self.news = [("step 8", "cold")]

    def count(self) -> ProgramCounts:
        return self.counts

    def take_news(self) -> list[tuple[str, str]]:
        news, self.news = self.news, []
        return news


def test_programs_that_come_while_the_loop_sleeps_are_told_at_once() -> None:
    ours, theirs = socket.socketpair()
    runner = FewPrograms()
    connection = EngineSocket(theirs)
    loop = threading.Thread(target=EngineProcess(SilentCore(), connection).run)  # type: ignore[arg-type]
    loop.start()
    ProgramReport(connection, runner)("background-compile", 0, 2, "step 16")  # type: ignore[arg-type]
    ours.settimeout(5)
    frame = ours.recv(65536)
    told = msgspec.msgpack.decode(frame[4:], type=FromEngine)
    assert told == EngineCompiled([("step 8", "cold")], ProgramCounts(1, 0, 2))
    ours.close()
    loop.join(5)
    assert not loop.is_alive()
    theirs.close()
