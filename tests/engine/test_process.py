"""The engine's loop towards its socket."""

import socket
import threading
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest

from jserve.engine import process as engine
from jserve.engine.process import EngineProcess, ProgramReport
from jserve.ipc import MAX_PROMPT_LOGPROBS, EngineSocket, encode_frame
from jserve.protocol import (
    EngineCompiled,
    EngineStats,
    FromEngine,
    ProgramCounts,
    Request,
    SamplingParams,
    StepFrame,
    TokenDelta,
    TokenLogprobs,
)
from tests.patience import PATIENCE_S


class SilentCore:
    """Makes steps that yield nothing, as while a long prompt is computed."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.clock_s = 0.0
        self.num_deferred = 0
        self.is_idle = True

    def add(self, request: Request) -> TokenDelta | None:
        self.is_idle = False
        return None

    def step(self) -> list[TokenDelta]:
        self.clock_s += 0.005
        self.num_steps += 1
        return []

    def stats(self) -> EngineStats:
        return EngineStats(num_steps=self.num_steps)


def test_steps_without_tokens_are_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a prompt that takes longer than the stall timeout looks like an engine that hangs."""
    ours, theirs = socket.socketpair()
    core = SilentCore()
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: core.clock_s))
    process = EngineProcess(core, EngineSocket(theirs))  # type: ignore[arg-type]
    ours.sendall(encode_frame(Request("a", [1], SamplingParams())))
    while core.num_steps < 1000:
        process.turn()
    theirs.close()
    steps = [frame.stats.num_steps for frame in _frames(ours)]
    assert len(steps) > 8, "the steps take five seconds of the core's clock"
    assert all(after - before > 50 for before, after in pairwise(steps)), "not one for each step"
    ours.close()


def _frames(connection: socket.socket) -> list[StepFrame]:
    """All that was sent until the other end was closed."""
    data = b"".join(iter(lambda: connection.recv(65536), b""))
    frames = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        frames.append(msgspec.msgpack.decode(data[4:end], type=StepFrame))
        data = data[end:]
    return frames


def test_logprobs_of_a_long_prompt_go_ahead_of_its_first_token_in_pieces() -> None:
    """24,000 tokens with 20 alternatives are 6 MB, which nobody else's tokens should wait for to be read."""
    ours, theirs = socket.socketpair()
    scores = [TokenLogprobs(-float(position), 1, [], []) for position in range(2 * MAX_PROMPT_LOGPROBS + 3)]
    deltas = [TokenDelta("short", [7], prompt_logprobs=scores[:2]), TokenDelta("long", [8], prompt_logprobs=scores)]
    EngineSocket(theirs).send(StepFrame(deltas, EngineStats()))
    theirs.close()
    *pieces, last = _frames(ours)
    assert [delta.token_ids for frame in pieces for delta in frame.deltas] == [[], []]
    assert [(delta.request_id, delta.token_ids) for delta in last.deltas] == [("short", [7]), ("long", [8])]
    assert last.deltas[0] == deltas[0]
    parts = [frame.deltas[-1].prompt_logprobs or [] for frame in (*pieces, last)]
    assert [len(part) for part in parts] == [MAX_PROMPT_LOGPROBS, MAX_PROMPT_LOGPROBS, 3]
    assert [score for part in parts for score in part] == scores
    ours.close()


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
    ours.settimeout(PATIENCE_S)
    frame = ours.recv(65536)
    message = msgspec.msgpack.decode(frame[4:], type=FromEngine)
    assert message == EngineCompiled([("step 8", "cold")], ProgramCounts(1, 0, 2))
    ours.close()
    loop.join(PATIENCE_S)
    assert not loop.is_alive()
    theirs.close()
