"""A made trace gives exactly its known statistics, and the decision follows from them."""

import json
from pathlib import Path

import msgspec
import pytest

from jserve.api.telemetry.workload import RecordedRequest
from jserve.cli import main
from jserve.commands.workload.decision import decide, moves
from jserve.commands.workload.statistics import measure


def request(at_s: float, *, took_s: float = 1.0, first_s: float = 0.1, **fields) -> RecordedRequest:
    known = {
        "input_length": 100,
        "output_length": 20,
        "hash_ids": [1],
        "session_id": "a",
        "status": 200,
        "stream": True,
    }
    return RecordedRequest(timestamp=1000 * at_s, ttft_ms=1000 * first_s, e2e_ms=1000 * took_s, **(known | fields))


SMALL = [request(10.0 * at, session_id="ab"[at % 2], hash_ids=[1, at + 2]) for at in range(12)]
"""Two users, a request each ten seconds that takes one: two minutes of them."""
LARGE = [
    request(0.5 * at, took_s=8.0, first_s=6.0 if at % 4 == 0 else 0.5, session_id=str(at % 30), input_length=4000,
            output_length=300, max_tokens=1000, status=503 if at % 50 == 49 else 200)
    for at in range(400)
]  # fmt: skip
"""Thirty users, two requests a second that take eight: sixteen open at once, a quarter of them late, 2% refused."""


def test_a_small_workload_is_measured_and_stays() -> None:
    statistics = measure(SMALL)
    assert (statistics.requests, statistics.users, statistics.seconds) == (12, 2, 111.0)
    assert statistics.minutes == (6, 6)
    assert (statistics.a_minute.mean, statistics.a_minute.p95, statistics.a_minute.most) == (6, 6, 6)
    assert statistics.at_once.mean == pytest.approx(12 / 111)
    assert (statistics.at_once.p50, statistics.at_once.p95, statistics.at_once.most) == (0, 1, 1)
    assert (statistics.input_length.p50, statistics.output_length.most, statistics.context.p95) == (100, 20, 120)
    assert statistics.output_a_second == 2.0
    assert statistics.shared == 11 / 24
    assert (statistics.waited, statistics.refused, statistics.failed) == (0, 0, 0)
    assert not moves(statistics)
    assert decide(statistics).startswith(
        "Stay with one small machine: 95% of the time at most 1 requests were open at once (the most: 1), 0% waited"
    )


def test_a_large_workload_is_measured_and_moves() -> None:
    statistics = measure(LARGE)
    assert (statistics.users, statistics.at_once.p50, statistics.at_once.most) == (30, 16, 16)
    answered = [one for one in LARGE if one.status == 200]
    assert statistics.waited == sum(one.ttft_ms > 5000 for one in answered) / len(answered)
    assert statistics.refused == 8 / 400
    assert statistics.context.most == 5000
    assert statistics.output_a_second == max(
        sum(one.output_length for one in answered if one.timestamp // 60_000 == minute) / 60 for minute in range(4)
    )
    assert moves(statistics)
    said = decide(statistics)
    assert said.startswith("Move to a server that answers many at once: 95% of the time at most 16 requests were open")
    assert "a context of 5,000 tokens" in said


def test_a_report_is_printed_and_written_as_a_page(tmp_path: Path, capsys) -> None:
    trace = tmp_path / "workload.jsonl"
    trace.write_bytes(b"\n".join(msgspec.json.encode(one) for one in LARGE))
    main(["report", str(trace), "--html", str(tmp_path / "report.html")])
    assert "Move to a server" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    main(["report", str(trace), "--json"])
    assert json.loads(capsys.readouterr().out)["users"] == 30


def test_a_file_that_is_no_trace_is_told(tmp_path: Path, capsys) -> None:
    trace = tmp_path / "workload.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}\n{"oops"\n')
    with pytest.raises(SystemExit):
        main(["report", str(trace)])
    assert f"{trace}, line 2, is not a recorded request" in capsys.readouterr().err
    trace.write_text("")
    with pytest.raises(SystemExit):
        main(["report", str(trace)])
    assert "holds no request" in capsys.readouterr().err
