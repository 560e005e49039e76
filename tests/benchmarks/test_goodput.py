"""The trace has the shape it promises, and a replay of it is judged right."""

import asyncio
import contextlib
import itertools
import json
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from benchmarks.goodput import GoodputRun, judge, main, served_rates
from benchmarks.trace import TraceSpec, TraceText, describe, make_trace, shareable_share
from jserve.commands.bench.load import Outcome
from jserve.commands.bench.metrics import measure
from tests.commands.bench.stub_server import StubServer

# The trace


def test_a_trace_follows_from_its_seed() -> None:
    spec = TraceSpec(requests=80, rate=2.0)
    assert make_trace(spec, "a") == make_trace(spec, "a") != make_trace(spec, "b")


def test_the_rate_compresses_the_same_recording() -> None:
    slow, fast = (make_trace(TraceSpec(requests=80, rate=rate), "a") for rate in (1.0, 4.0))
    assert [(r.conversation, r.turn, r.input_len) for r in slow] == [
        (r.conversation, r.turn, r.input_len) for r in fast
    ]
    assert [r.at for r in slow] == pytest.approx([4 * r.at for r in fast])
    assert slow[-1].at == pytest.approx(80.0)


def test_lengths_have_heavy_tails_and_arrivals_have_bursts() -> None:
    figures = describe(make_trace(TraceSpec(requests=3000, rate=1.0), "a"))
    trace = make_trace(TraceSpec(requests=3000, rate=1.0, max_total=16384), "a")
    inputs = sorted(request.input_len for request in trace)
    assert 75 < inputs[1500] < 110
    assert inputs[2970] > 12 * inputs[1500]
    assert 195 < statistics.fmean(request.output_len for request in trace) < 225
    assert 850 < figures["prompt_p50"] < 1250
    assert figures["gap_cv"] > 1.4


def test_requests_fit_the_context_and_conversations_extend_their_own_history() -> None:
    trace = make_trace(TraceSpec(requests=500, rate=1.0, max_total=1024), "a")
    assert [r.at for r in trace] == sorted(r.at for r in trace)
    history: Counter[int] = Counter()
    turns: Counter[int] = Counter()
    for request in trace:
        assert request.system_len + request.history_len + request.input_len + request.output_len <= 1024
        assert (request.turn, request.history_len) == (turns[request.conversation], history[request.conversation])
        turns[request.conversation] += 1
        history[request.conversation] += request.input_len + request.output_len
    assert 0.3 < sum(request.turn > 0 for request in trace) / len(trace) < 0.7


def test_some_system_prompts_are_far_more_popular_than_others() -> None:
    trace = make_trace(TraceSpec(requests=1000, rate=1.0), "a")
    popularity = Counter(request.system for request in {r.conversation: r for r in trace}.values())
    assert popularity[0] > 3 * popularity[5] > 0
    assert len({(r.system, r.system_len) for r in trace}) == 6


def test_words_are_shared_within_a_seed_only() -> None:
    first, second = make_trace(TraceSpec(requests=40, rate=1.0), "a")[:2]
    here, there = TraceText("here"), TraceText("there")
    assert here.system(first) == TraceText("here").system(first)
    assert here.system(first).split()[:4] != there.system(first).split()[:4]
    assert here.user(first) != here.user(second)
    assert len(here.user(first).split()) == first.input_len


def test_what_can_be_shared_is_known_system_prompts_and_histories() -> None:
    trace = make_trace(TraceSpec(requests=3, rate=1.0, system_prompts=1), "a")
    known = sum(r.history_len for r in trace) + 2 * trace[0].system_len
    assert shareable_share(trace) == known / (known + trace[0].system_len + sum(r.input_len for r in trace))


# The figures


def _outcome(due: float, times: list[float], cached: int | None, prompt: int = 100) -> Outcome:
    return Outcome(
        asked_tokens=len(times),
        due=due,
        sent=due,
        text_times=times,
        ended=times[-1],
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=len(times),
        counted_by="usage",
    )


def _judged(outcomes: list[Outcome], chunk_ms: float | None = 100.0) -> GoodputRun:
    slo = {"ttft": 1000.0, "tpot": 100.0}
    return judge(outcomes, measure(outcomes, streamed=True, goodput=slo), slo, "a", 1.0, 0, chunk_ms)


def test_a_request_is_good_if_it_keeps_every_target_and_failures_are_not() -> None:
    good = _outcome(0.0, [0.5, 0.55, 0.6], cached=50)
    late = _outcome(0.0, [1.5, 1.55, 1.6], cached=0)
    slow = _outcome(0.0, [0.5, 0.8, 2.0], cached=10)
    failed = Outcome(asked_tokens=3, due=0.0, sent=0.0, ended=1.0, error="HTTP 500")
    run = _judged([good, late, slow, failed])
    assert (run.good_share, run.missed) == (0.25, {"ttft": 1, "tpot": 1})
    assert run.good_tokens_per_s == pytest.approx(3 / 2.0)
    assert run.cached_share == pytest.approx(60 / 300)


def test_the_longest_stall_is_told_in_chunks() -> None:
    run = _judged([_outcome(0.0, [0.1, 0.2, 0.5], None), _outcome(0.0, [0.1, 0.9], None)])
    assert run.stall_ms["p50"] == pytest.approx(550)
    assert run.stall_in_chunks == pytest.approx(8.0)
    assert run.cached_share is None


def test_the_served_rate_is_the_highest_with_enough_good_requests() -> None:
    good, late = _outcome(0.0, [0.5, 0.6], 0), _outcome(0.0, [9.5, 9.6], 0)
    rounds = {0.5: [good] * 10, 1.0: [good] * 9 + [late], 2.0: [good] * 8 + [late] * 2}
    slo = {"ttft": 1000.0}
    runs = [
        judge(outcomes, measure(outcomes, streamed=True), slo, "a", rate, 0, None) for rate, outcomes in rounds.items()
    ]
    assert served_rates(runs) == {"a": 1.0}


# The whole, against a server


@contextlib.contextmanager
def _serving(server: StubServer) -> Iterator[StubServer]:
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(server.serve_connection, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()
        async with listener:
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def test_a_replay_sends_every_request_with_its_history_and_both_servers_the_same(tmp_path: Path) -> None:
    out = tmp_path / "goodput.json"
    argv = ["--requests", "24", "--rates", "200", "--rounds", "2", "--seed", "5", "--out", str(out)]
    argv += ["--slo", "ttft:120000", "tpot:120000"]
    with _serving(StubServer()) as first, _serving(StubServer()) as second:
        urls = ["--url", f"a={first.url}", "--url", f"b={second.url}", "--chunk", "64"]
        assert main([*argv, *urls]) == 0
    for server in (first, second):
        assert len(server.bodies) == 3 + 48
    texts = [sorted(json.dumps(body["messages"]) for body in server.bodies[3:]) for server in (first, second)]
    assert texts[0] == texts[1]
    for body in first.bodies[3:]:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", *itertools.islice(itertools.cycle(["user", "assistant"]), len(roles) - 1)]
        answers = [message["content"] for message in body["messages"] if message["role"] == "assistant"]
        assert all(set(answer.split()) == {"w"} for answer in answers)
    follow_ups = [body for body in first.bodies[3:] if len(body["messages"]) > 2]
    assert follow_ups
    report = json.loads(out.read_text())
    assert [(run["target"], run["round"]) for run in report["runs"]] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert all(run["good_share"] == 1.0 and run["stall_in_chunks"] is not None for run in report["runs"])
    assert report["served_rates"] == {"a": 200.0, "b": 200.0}


def test_a_failed_turn_fails_the_rest_of_its_conversation(tmp_path: Path) -> None:
    with _serving(StubServer(fail_every=4)) as server:
        assert (
            main(["--url", f"a={server.url}", "--requests", "24", "--rates", "200", "--out", str(tmp_path / "o")]) == 1
        )
    (run,) = json.loads((tmp_path / "o").read_text())["runs"]
    metrics = run["metrics"]
    assert metrics["requests"] == 24
    assert metrics["failed"] > sum("HTTP 500" in error and "earlier" not in error for error in metrics["errors"])
    assert run["good_share"] == pytest.approx((24 - metrics["failed"]) / 24)
