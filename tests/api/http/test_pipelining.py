"""Requests that are sent before the first is answered: few are read, all are answered in order, memory is bounded."""

import gc
import json
import socket
import time

from jserve.api.http.http_protocol import MAX_WAITING_REQUESTS
from tests.api.http.raw_connection import RawConnection, post
from tests.api.live_server import LiveServer, StartServer

GET = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
TINY = b"GET / HTTP/1.1\r\n\r\n"
LONG = json.dumps({"prompt": "abc", "max_tokens": 200, "ignore_eos": True}).encode()


def test_all_are_answered_in_order(server: LiveServer) -> None:
    prompts = [f"{i} is the number" for i in range(30)]
    bodies = [json.dumps({"prompt": prompt, "max_tokens": 2}).encode() for prompt in prompts]
    with RawConnection(server.url) as raw:
        raw.send(b"".join(post("/v1/completions", body) for body in bodies))
        texts = [json.loads(raw.answer()[2])["choices"][0]["text"] for _ in prompts]
    assert texts == [prompt[:2] for prompt in prompts]


def test_what_nobody_has_answered_yet_is_not_read(start_server: StartServer) -> None:
    """While the first is answered the server holds a few requests, however many have been sent."""
    live = start_server("--step-ms", "20")
    with RawConnection(live.url) as raw:
        raw.send(post("/v1/completions", LONG))
        live.wait_for(lambda: live.server.context.generator.num_open == 1)
        sent, idle = 0, 0
        while idle < 50:  # The buffers of both sides are full.
            count = raw.send_some(GET * 1000)
            sent += count
            idle = 0 if count else idle + 1
            time.sleep(0.01)
        [protocol] = [each for each in _protocols() if each.pipeline]
        assert MAX_WAITING_REQUESTS <= len(protocol.pipeline) < 30
        assert protocol._gate.is_held
        assert len(protocol._unparsed) <= 1 << 18, "one read of the socket at most"
        assert live.status("/health") == 200


def test_a_flood_of_tiny_requests_behind_a_body_ends_the_connection(start_server: StartServer) -> None:
    live = start_server("--step-ms", "20")
    with RawConnection(live.url) as raw:
        raw.send(post("/v1/completions", LONG) + TINY * 20)
        raw.send(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\n{} " + TINY * 2000)
        live.wait_for(lambda: live.server.context.generator.num_open == 1)
        live.wait_for(lambda: max((len(each.pipeline) for each in _protocols()), default=0) < 100)
    live.wait_for(lambda: live.server.context.generator.num_open == 0)


def test_the_first_request_of_a_client_that_leaves_is_aborted_though_others_wait(start_server: StartServer) -> None:
    live = start_server("--step-ms", "20")
    with RawConnection(live.url) as raw:
        raw.send(post("/v1/completions", LONG) + GET)
        live.wait_for(lambda: live.metric("vllm:num_requests_running") == 1)
    live.wait_for(lambda: live.server.context.generator.num_open == 0)
    assert live.metric("jserve:aborted_requests_total", reason="client disconnected") == 1


def test_a_stream_that_was_paused_goes_on_though_another_request_waits(start_server: StartServer) -> None:
    """The one that may write again is the one that is being answered, not the newest."""
    live = start_server(max_model_len=20_000)
    body = {"prompt": "0123456789" * 20, "max_tokens": 2_500, "stream": True, "logprobs": 5}
    with RawConnection(live.url) as raw:
        raw._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.send(post("/v1/completions", json.dumps(body).encode()) + GET[:-2] + b"connection: close\r\n\r\n")
        live.wait_for(lambda: live.metric("vllm:generation_tokens_total") >= 1)
        live.wait_for(lambda: live.metric("vllm:num_requests_running") == 0)
        received = raw.rest()
    assert received.count(b"data: [DONE]") == 1
    assert received.endswith(b"}"), "the second was answered too"


def _protocols() -> list[object]:
    from jserve.api.http.http_protocol import HttpProtocol

    return [each for each in gc.get_objects() if issubclass(type(each), HttpProtocol) and each.transport is not None]
