"""The clock of an engine's silence: what starts it, what sets it back, and what it never counts."""

from typing import Any

import pytest

from jserve.api.settings import ServerSettings
from jserve.api.supervisor import answer_clock
from jserve.api.supervisor.client import EngineClient, EngineStatus
from jserve.config import EngineConfig
from jserve.protocol import EngineCompiled, EngineStats, ProgramCounts, StepFrame, TokenDelta

STATS = EngineStats(num_running=1)


class _Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Time:
    made = _Time()
    monkeypatch.setattr(answer_clock, "time", made)
    return made


class _Process:
    """An engine that takes everything and says nothing by itself."""

    def send(self, messages: Any) -> None: ...


@pytest.fixture
def client() -> EngineClient:
    made = EngineClient(EngineConfig(model="m"), ServerSettings(model="m", stall_timeout_s=60, hang_timeout_s=300))
    made.state = EngineStatus.READY
    made._process = _Process()  # type: ignore[assignment]
    return made


def _frame(client: EngineClient, stats: EngineStats = STATS, *deltas: TokenDelta) -> None:
    client._receive_all([StepFrame(list(deltas), stats)])


def test_a_prompt_that_is_computed_for_an_hour_is_no_stall(clock: _Time, client: EngineClient) -> None:
    """Steps count, not answers: none of these has a token."""
    client._send([])
    for step in range(100):
        clock.now += 59
        assert not client.is_stalled
        _frame(client, EngineStats(num_running=1, num_steps=step))
    clock.now += 61
    assert client.is_stalled
    assert not client.is_hung
    clock.now += 240
    assert client.is_hung


def test_clients_that_give_up_do_not_stop_it(clock: _Time, client: EngineClient) -> None:
    client._send([])
    for _ in range(10):
        clock.now += 31
        client._send([])  # An abort, or the next client's request.
    assert client.seconds_silent == 310
    assert client.is_hung


def test_what_crosses_an_abort_on_its_way_does_not_stop_it(clock: _Time, client: EngineClient) -> None:
    client._send([])
    _frame(client, EngineStats(num_running=1))
    clock.now += 61
    assert client.is_stalled, "by its own word the engine had something to do"


def test_an_idle_engine_owes_nothing(clock: _Time, client: EngineClient) -> None:
    client._send([])
    _frame(client, EngineStats())
    clock.now += 10_000
    assert client.seconds_silent == 0
    assert not client.is_stalled


def test_a_step_may_wait_for_programs_that_are_compiled_behind(clock: _Time, client: EngineClient) -> None:
    """On a CPU both share the cores: the first prompt after a start waited for minutes, and the engine worked."""
    client._send([])
    for _ in range(10):
        clock.now += 59
        assert not client.is_stalled
        client._receive_all([EngineCompiled([], ProgramCounts(1, 0, 2))])
    clock.now += 61
    assert client.is_stalled


def test_zero_never_takes_it_for_hung(clock: _Time) -> None:
    client = EngineClient(EngineConfig(model="m"), ServerSettings(model="m", hang_timeout_s=0))
    client.state = EngineStatus.READY
    client._process = _Process()  # type: ignore[assignment]
    client._send([])
    clock.now += 1e6
    assert client.is_stalled
    assert not client.is_hung


def test_an_engine_that_loads_is_neither(clock: _Time, client: EngineClient) -> None:
    client._send([])
    clock.now += 1e6
    client.state = EngineStatus.LOADING
    assert not client.is_stalled
    assert not client.is_hung
