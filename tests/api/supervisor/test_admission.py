"""The queue's limits: what is above them is refused at once, and nobody else notices."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest

from jserve.api.supervisor.admission import Admission
from jserve.errors import OverloadedError
from jserve.protocol import EngineStats, Request, SamplingParams
from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S


def _requests(*lengths: int) -> list[Request]:
    return [Request(f"{i}", [1] * length, SamplingParams()) for i, length in enumerate(lengths)]


def _admits(admission: Admission, count: int, num_open: int, stats: EngineStats | None = None) -> bool:
    try:
        admission.check(_requests(*[1] * count), num_open=num_open, max_num_seqs=4, stats=stats or EngineStats())
    except OverloadedError:
        return False
    return True


def test_places_that_are_free_are_not_counted_as_queue() -> None:
    admission = Admission(2, None)
    assert _admits(admission, 4, 0)
    assert _admits(admission, 2, 4), "two may wait"
    assert not _admits(admission, 1, 6)
    assert not _admits(admission, 3, 4), "a request with n=3 counts as three"
    assert admission.rejected == {"queued_requests": 2}


def test_an_engine_that_queues_has_only_the_places_that_it_uses() -> None:
    """Its pages are full before its places are."""
    busy = EngineStats(num_running=2, num_waiting=1)
    assert _admits(Admission(2, None), 1, 3, busy)
    assert not _admits(Admission(2, None), 1, 4, busy)


def test_an_idle_engine_takes_what_is_larger_than_the_queue() -> None:
    assert _admits(Admission(0, 1), 100, 0)


def test_no_queue_at_all() -> None:
    assert _admits(Admission(0, None), 1, 3)
    assert not _admits(Admission(0, None), 1, 4)


def test_prompt_tokens_wait_until_the_first_token() -> None:
    admission = Admission(None, 10)
    admission.check(_requests(20), num_open=0, max_num_seqs=4, stats=EngineStats())
    with pytest.raises(OverloadedError, match="20 prompt tokens wait and 1 more are above --max-queued-tokens 10"):
        admission.check(_requests(1), num_open=1, max_num_seqs=4, stats=EngineStats())
    admission.unstarted.clear()
    admission.check(_requests(4, 6), num_open=1, max_num_seqs=4, stats=EngineStats())
    assert admission.rejected == {"queued_tokens": 1}


def _of(tenant: int, name: str, *lengths: int) -> list[Request]:
    return [Request(f"{name} {i}", [1] * length, SamplingParams(), tenant=tenant) for i, length in enumerate(lengths)]


def test_a_full_queue_is_open_to_a_tenant_below_its_part() -> None:
    """4 places and a queue of 6: one tenant may have all 10, and beside another only its half."""
    admission = Admission(6, None)

    def admits(tenant: int, name: str, count: int) -> bool:
        num_open = sum(admission._num_open.values())
        try:
            admission.check(_of(tenant, name, *[1] * count), num_open=num_open, max_num_seqs=4, stats=EngineStats())
        except OverloadedError:
            return False
        return True

    assert admits(1, "flood", 10)
    assert not admits(1, "more", 1)
    assert admits(2, "light", 5)
    assert not admits(2, "light too", 1)
    assert not admits(1, "more", 1)
    assert admits(3, "third", 3), "a third of 10"
    assert not admits(3, "third too", 1)
    for number in range(10):
        admission.close(f"flood {number}")
    assert admits(2, "again", 2)
    admission.clear()
    assert admits(1, "flood", 10)


def test_waiting_tokens_are_parted_likewise() -> None:
    admission = Admission(None, 100)
    admission.check(_of(1, "flood", 50, 50), num_open=0, max_num_seqs=4, stats=EngineStats())
    admission.check(_of(2, "light", 20, 30), num_open=2, max_num_seqs=4, stats=EngineStats())
    for tenant in (1, 2):
        with pytest.raises(OverloadedError):
            admission.check(_of(tenant, "more", 1), num_open=4, max_num_seqs=4, stats=EngineStats())
    admission.close("light 1")
    admission.check(_of(2, "more", 30), num_open=3, max_num_seqs=4, stats=EngineStats())


def _flood(live: LiveServer, hold: Path, count: int, **fields: object) -> "Counter[int]":
    """How many of `count` requests end with which status, where the engine makes no step before the last is there."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=live.url, timeout=PATIENCE_S) as client:
            body = {"prompt": "abcd", "max_tokens": 4, "temperature": 1, **fields}
            hold.touch()
            tasks = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(count)]
            while sum(task.done() for task in tasks) + live.server.context.generator.num_open < count:
                await asyncio.sleep(0.005)
            hold.unlink()
            return await asyncio.gather(*tasks)

    answers = asyncio.run(send())
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["type"] == "Service Unavailable"
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert len(answer.json()["choices"]) == fields.get("n", 1)
    return Counter(answer.status_code for answer in answers)


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file: while it is there, the engine makes no step."""
    return tmp_path / "hold"


def test_a_flood_leaves_what_fits(start_server: StartServer, hold: Path) -> None:
    live = start_server("--steps-held-by", str(hold), "--max-num-seqs", "4", max_queued_requests=6)
    assert _flood(live, hold, 40) == {200: 4 + 6, 503: 30}
    assert _flood(live, hold, 10, n=3) == {200: 3, 503: 7}
    assert live.metric("vllm:admission_rejections_total", reason="queued_requests") == 37
    assert _flood(live, hold, 10) == {200: 10}, "nothing is left behind"
    hold.touch()
    with pytest.raises(openai.InternalServerError) as caught:
        asyncio.run(_one_too_many(live))
    hold.unlink()
    assert caught.value.status_code == 503


async def _one_too_many(live: LiveServer) -> None:
    client = openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    await asyncio.gather(*(client.completions.create(model="tiny", prompt="ab", max_tokens=2) for _ in range(20)))


def test_a_flood_of_tokens(start_server: StartServer, hold: Path) -> None:
    live = start_server("--steps-held-by", str(hold), "--max-num-seqs", "4", max_queued_tokens=40)
    assert _flood(live, hold, 20) == {200: 10, 503: 10}
    assert live.metric("vllm:admission_rejections_total", reason="queued_tokens") == 10
    assert not live.server.context.client.admission.unstarted
    assert _flood(live, hold, 10) == {200: 10}


def test_clients_that_leave_make_room(start_server: StartServer) -> None:
    limits = {"max_queued_requests": 1, "max_queued_tokens": 8}
    live = start_server("--step-ms", "20", "--max-num-seqs", "1", max_model_len=40_000, **limits)
    body = {"prompt": "abcd", "max_tokens": 30_000, "stream": True}
    for _ in range(3):
        with live.http.stream("POST", "/v1/completions", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            with live.http.stream("POST", "/v1/completions", json=body) as waiting:
                assert waiting.status_code == 200
                assert live.http.post("/v1/completions", json=body).status_code == 503
        live.wait_for(lambda: live.server.context.client.num_open == 0)
    assert not live.server.context.client.admission.unstarted
