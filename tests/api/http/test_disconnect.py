"""A client that leaves costs nothing more: its request is aborted in the engine at once."""

import json
import logging
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S

_BODY = {"prompt": "hello ", "max_tokens": 30_000}
"""Ten minutes of steps: no such request ends by itself."""


@pytest.fixture(scope="module")
def slow(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--step-ms", "20", max_model_len=40_000)
    yield live
    live.stop()


def _request(body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(content)}\r\n\r\n".encode() + content


def _engine_aborts(live: LiveServer) -> float:
    """The fake engine counts aborts of requests that it was running as preemptions."""
    return live.metric("vllm:num_preemptions_total")


def _check_abort(live: LiveServer, before: float, count: int = 1) -> None:
    """The abort is in the engine before a later request has ten tokens from it."""
    live.complete("ab", max_tokens=10)
    assert _engine_aborts(live) == before + count
    live.wait_for(lambda: live.metric("vllm:num_requests_running") == 0)
    live.wait_for(lambda: live.server.context.generator.num_open == 0)


def test_leaving_a_stream_aborts(slow: LiveServer) -> None:
    before = _engine_aborts(slow)
    with slow.http.stream("POST", "/v1/completions", json={**_BODY, "stream": True}) as response:
        assert next(response.iter_lines()).startswith("data: ")
    _check_abort(slow, before)


def test_leaving_a_stream_of_several_choices_aborts_all(slow: LiveServer) -> None:
    before = _engine_aborts(slow)
    body = {**_BODY, "stream": True, "n": 3, "temperature": 1}
    with slow.http.stream("POST", "/v1/completions", json=body) as response:
        assert next(response.iter_lines()).startswith("data: ")
    _check_abort(slow, before, count=3)


def test_leaving_before_a_whole_answer_aborts(slow: LiveServer) -> None:
    before = _engine_aborts(slow)
    aborted = slow.metric("jserve:aborted_requests_total", reason="client disconnected")
    with socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))) as connection:
        connection.sendall(_request(_BODY))
        slow.wait_for(lambda: slow.metric("vllm:num_requests_running") == 1)
    _check_abort(slow, before)
    assert slow.metric("jserve:aborted_requests_total", reason="client disconnected") == aborted + 1
    assert slow.metric("vllm:request_success_total", finished_reason="abort") >= 1


def test_the_log_says_that_the_client_left(slow: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    before = _engine_aborts(slow)
    with caplog.at_level(logging.INFO, logger="jserve"):
        with slow.http.stream(
            "POST", "/v1/completions", json={**_BODY, "stream": True, "request_id": "left"}
        ) as response:
            assert next(response.iter_lines()).startswith("data: ")
        _check_abort(slow, before)
    lines = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert len(lines) == 1
    assert " aborted: client disconnected; prompt=4 " in lines[0]


def test_leaving_while_the_request_is_still_being_sent_starts_nothing(slow: LiveServer) -> None:
    port = int(slow.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"prompt": '
        )
    assert slow.status("/ready") == 200, "which is answered after the end of the other connection was read"
    assert slow.server.context.generator.num_open == 0


def test_a_reader_that_reads_nothing_holds_up_nobody_and_gets_everything_later(start_server: StartServer) -> None:
    """Its connection takes no more after a few hundred events; the others are answered meanwhile."""
    live = start_server(max_model_len=20_000)
    body = {"prompt": "0123456789" * 20, "max_tokens": 15_000, "stream": True, "return_token_ids": True}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        connection.sendall(_request(body))
        live.wait_for(lambda: live.metric("vllm:generation_tokens_total") >= 1)
        assert live.complete("abc", max_tokens=100)["usage"]["completion_tokens"] == 100
        live.wait_for(lambda: live.metric("vllm:num_requests_running") == 0)  # the engine did not wait either
        assert live.server.context.generator.num_open == 1
        received = bytearray()
        while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = connection.recv(1 << 16)
            assert piece, "the server closed the connection"
            received += piece
    texts = re.findall(rb'"text":"(\d*)"', received)
    assert b"".join(texts) == (b"0123456789" * 1500)
    live.wait_for(lambda: live.server.context.generator.num_open == 0)


def test_a_reader_that_is_slow_gets_everything(server: LiveServer) -> None:
    body = {"prompt": "0123456789", "max_tokens": 240, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        time.sleep(0.3)
        text = response.read().decode()
    assert text.count('"text":') == 240
    assert text.endswith("data: [DONE]\n\n")
