"""The recorder changes no byte, counts as the server counts, keeps no text, and harms no traffic."""

import itertools
import json
import socket
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve.api.telemetry.workload import RecordedRequest, TraceFile
from jserve.commands.workload.prompt import read_prompt
from jserve.commands.workload.recorder import Upstream
from jserve.errors import ConfigError
from tests.api.live_server import LiveServer
from tests.commands.workload.recording import canned, exchange, recording
from tests.patience import wait_until

BODY = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
EVENTS = (
    b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    b'data: {"choices": [{"delta": {"content": "first"}}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}\n\ndata: [DONE]\n\n'
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
)


@given(st.lists(st.integers(1, len(ANSWER) - 1), max_size=6))
@settings(max_examples=25)
def test_no_byte_is_changed_however_an_answer_is_cut(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(ANSWER)]
    parts = [ANSWER[start:end] for start, end in itertools.pairwise(edges)]
    trace = tmp_path_factory.mktemp("trace") / "t.jsonl"
    heard = bytearray()
    with canned(parts, heard, wanted=len(REQUEST)) as url, recording(url, trace) as recorder:
        assert exchange(recorder.url, REQUEST) == ANSWER
        assert bytes(heard) == REQUEST
        wait_until(lambda: len(recorder.requests()) == 1)
        (request,) = recorder.requests()
    assert (request.input_length, request.output_length, request.status) == (11, 7, 200)
    assert request.stream
    assert request.ttft_ms is not None
    assert not request.estimated


def test_counts_are_those_of_the_server_on_every_api(server: LiveServer, tmp_path: Path) -> None:
    hello = [{"role": "user", "content": "hello"}]
    calls = [
        ("/v1/chat/completions", {"messages": hello, "max_tokens": 9}),
        ("/v1/chat/completions",
         {"messages": hello, "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 9}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 16}),
        ("/v1/messages", {"messages": hello, "max_tokens": 9}),
        ("/v1/messages", {"messages": hello, "max_tokens": 9, "stream": True}),
        ("/api/chat", {"model": "tiny", "messages": hello, "options": {"num_predict": 9}}),
        ("/api/generate", {"model": "tiny", "prompt": "hello", "stream": False, "options": {"num_predict": 9}}),
        ("/v1/embeddings", {"input": "hello"}),
    ]  # fmt: skip
    with recording(server.url, tmp_path / "t.jsonl") as recorder, httpx.Client(base_url=recorder.url) as client:
        for path, body in calls:
            assert client.post(path, json=body).status_code == 200, path
        assert client.get("/v1/models").status_code == 200
        wait_until(lambda: len(recorder.requests()) == len(calls))
        requests = recorder.requests()
        assert client.post("/v1/completions", json={"prompt": "x", "temperature": -1}).status_code == 400
        wait_until(lambda: recorder.requests()[-1].status == 400)
    assert [request.endpoint for request in requests] == [path for path, _ in calls]
    prompt = server.chat("hello", max_tokens=9)["usage"]
    for request, (path, body) in zip(requests, calls, strict=True):
        assert not request.estimated, path
        if "messages" in body:
            assert request.input_length == prompt["prompt_tokens"], path
            assert request.output_length == prompt["completion_tokens"], path
        is_streamed = body.get("stream", path == "/api/chat")
        assert request.stream == is_streamed, path
        assert (request.ttft_ms is not None) == is_streamed, path
        assert len(request.hash_ids) == -(-request.input_length // 512)
    assert len({request.session_id for request in requests}) == 1


TEXT = st.text(min_size=8, max_size=60)


@given(TEXT, TEXT, TEXT)
@settings(max_examples=60)
def test_nothing_of_a_text_is_in_a_line(prompt: str, system: str, user: str) -> None:
    body = {"model": "m", "user": user, "messages": [
        {"role": "system", "content": system}, {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]}  # fmt: skip
    facts = read_prompt(body, b"salt")
    kept = json.dumps([facts.block_ids(2000), facts.model, facts.max_tokens, facts.tools, facts.images])
    for text in (prompt, system, user):
        assert not any(text[at : at + 8] in kept for at in range(len(text) - 7) if not text[at : at + 8].isdigit())


def test_equal_beginnings_have_equal_ids_within_a_file_alone() -> None:
    long = "word " * 2000
    one, other, elsewhere = (
        read_prompt({"prompt": long + end}, salt).block_ids(3000)
        for end, salt in (("one", b"s"), ("other", b"s"), ("one", b"t"))
    )
    assert one[:4] == other[:4]
    assert one != other
    assert not set(one) & set(elsewhere)
    assert len(set(one)) == len(one) == 6


def test_an_upstream_that_is_not_there_is_a_502_that_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with recording(f"127.0.0.1:{port}", tmp_path / "t.jsonl") as recorder:
        answer = httpx.post(f"{recorder.url}/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 502
        assert f"127.0.0.1:{port} does not answer" in answer.json()["error"]["message"]
        wait_until(lambda: len(recorder.requests()) == 1)
        assert recorder.requests()[0].status == 0


def test_a_client_that_goes_is_recorded_without_an_end(tmp_path: Path) -> None:
    heard = bytearray()
    with canned([ANSWER[:250]], heard, wanted=len(REQUEST)) as url, recording(url, tmp_path / "t.jsonl") as recorder:
        assert exchange(recorder.url, REQUEST) == ANSWER[:250]
        wait_until(lambda: len(recorder.requests()) == 1)
        (request,) = recorder.requests()
        assert (request.status, request.e2e_ms, request.output_length) == (0, None, 0)


def test_what_is_no_http_passes_all_the_same(tmp_path: Path) -> None:
    heard = bytearray()
    with canned([b"\x00pong\xff"], heard, wanted=6) as url, recording(url, tmp_path / "t.jsonl") as recorder:
        assert exchange(recorder.url, b"\x01ping\x02") == b"\x00pong\xff"
        assert recorder.requests() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_costs_lines_and_no_traffic(caplog: pytest.LogCaptureFixture) -> None:
    file = TraceFile(Path("/dev/full"))
    for _ in range(3):
        file.write(RecordedRequest(0.0, 1, 1, [1]))
    assert (file.num_written, file.num_lost) == (0, 3)
    assert sum("pass all the same" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:1/v1"])
def test_an_upstream_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="--upstream"):
        Upstream(url)
