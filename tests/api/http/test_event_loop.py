"""No single request holds the event loop for more than 50 ms of its CPU time: everybody else waits meanwhile."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.http.raw_connection import RawConnection, post
from tests.api.live_server import LiveServer, StartServer
from tests.api.loop_watch import MOST_HELD_S, LoopWatch, least_held_s
from tests.patience import PATIENCE_S

LENGTH = 4096
WORDS = "hello world, " * 250
TEXT = "x, [" * 400_000


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    made = make_server(max_model_len=LENGTH)
    yield made
    made.stop()


def _chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True, **fields}


def _completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "hello", "ignore_eos": True, **fields}


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a long answer": ("/v1/completions", _completion(max_tokens=4000)),
    "a long answer with logprobs": ("/v1/completions", _completion(max_tokens=2000, logprobs=5)),
    "many choices": ("/v1/completions", _completion(max_tokens=16, n=32, temperature=1)),
    "choices with logprobs": ("/v1/chat/completions", _chat(max_tokens=64, n=4, logprobs=True, top_logprobs=20)),
    "more choices with logprobs": ("/v1/completions", _completion(max_tokens=100, n=64, logprobs=5, temperature=1)),
    "a stream of logprobs": (
        "/v1/chat/completions",
        _chat(max_tokens=20, n=128, temperature=1, logprobs=True, top_logprobs=20, stream=True),
    ),
    "logprobs of very many choices": ("/v1/completions", _completion(max_tokens=4, n=2048, logprobs=5, temperature=1)),
    "logprobs of very many prompts": ("/v1/completions", _completion(prompt=["hello"] * 900, max_tokens=1, logprobs=5)),
    "logprobs of a prompt": ("/v1/completions", _completion(prompt=WORDS, max_tokens=1, prompt_logprobs=5)),
    "a stream of choices": ("/v1/chat/completions", _chat(max_tokens=64, n=16, temperature=1, stream=True)),
    "a long prompt": ("/v1/completions", _completion(prompt=WORDS, max_tokens=1)),
    "a prompt that is too long": ("/v1/completions", _completion(prompt=TEXT, max_tokens=1)),
    "token ids": ("/v1/completions", _completion(prompt=[5] * 400_000, max_tokens=1)),
    "a conversation that is too long": (
        "/v1/chat/completions",
        _chat(messages=[{"role": "user", "content": "x"}] * 20_000),
    ),
    "many prompts": ("/v1/completions", _completion(prompt=["hello"] * 128, max_tokens=2)),
    "many texts to embed": ("/v1/embeddings", {"input": ["hello"] * 256}),
    "a long text to tokenize": ("/tokenize", {"prompt": WORDS}),
    "unknown fields": ("/v1/chat/completions", _chat(**{f"field{i}": i for i in range(20_000)})),
    "a large schema": (
        "/v1/chat/completions",
        _chat(
            max_tokens=8,
            response_format={
                "type": "json_schema",
                "json_schema": {
                    "name": "large",
                    "schema": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}},
                },
            },
        ),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_no_request_holds_the_loop(live: LiveServer, name: str) -> None:
    path, body = REQUESTS[name]
    live.complete("warm", max_tokens=1)

    def send() -> None:
        response = live.http.post(path, json=body, timeout=PATIENCE_S)
        assert response.status_code < 500, response.text[:300]

    assert least_held_s(live, send) < MOST_HELD_S


def test_a_flood_of_pipelined_requests_does_not_either(live: LiveServer) -> None:
    get = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"

    def send() -> None:
        with RawConnection(live.url) as raw:
            raw.send(get * 2000 + post("/v1/completions", json.dumps(_completion(max_tokens=1)).encode()))
            for _ in range(2001):
                assert raw.answer()[0] == 200

    assert least_held_s(live, send) < MOST_HELD_S


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 256, "logprobs": 5, "max_tokens": 4000, "temperature": 1},
        {"prompt": ["hello"] * 900, "logprobs": 5, "max_tokens": 1000},
    ],
)
def test_more_logprobs_than_one_request_may_have_are_refused(live: LiveServer, fields: dict[str, Any]) -> None:

    def send() -> None:
        response = live.http.post("/v1/completions", json=_completion(**fields))
        assert response.status_code == 400
        assert "logprobs" in response.json()["error"]["message"]

    assert least_held_s(live, send) < MOST_HELD_S


def test_what_has_piled_up_behind_a_client_that_pauses_is_written_in_pieces(live: LiveServer) -> None:
    body = _chat(max_tokens=3000, logprobs=True, top_logprobs=20, stream=True)

    def send() -> None:
        with RawConnection(live.url) as raw:
            raw.send(post("/v1/chat/completions", json.dumps(body).encode(), b"connection: close"))
            live.wait_for(lambda: live.metric("vllm:num_requests_running") == 1)
            live.wait_for(lambda: live.metric("vllm:num_requests_running") == 0)
            received = raw.rest()
        assert received.count(b'"logprobs":{') == 3000

    assert least_held_s(live, send) < MOST_HELD_S


def test_the_watch_sees_what_holds_the_loop(live: LiveServer) -> None:
    def hold() -> None:
        sum(range(10_000_000))

    with LoopWatch(live) as watch:
        live.loop.call_soon_threadsafe(hold)
    assert watch.longest_s > MOST_HELD_S
