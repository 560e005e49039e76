"""Requests that mean no good: each a 4xx at once, and a neighbour's stream keeps its pace."""

import contextlib
import functools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from jserve.api.app import BODIES
from jserve.api.errors import Dialect
from jserve.api.http.description import error_schema
from tests.api.live_server import LiveServer, StartServer
from tests.api.stream_pace import undisturbed
from tests.patience import PATIENCE_S, wait_until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
AT_ONCE_S = 0.5
"""CPU time of the client and the server: an answer that needs no work takes milliseconds, a large body some more."""
PACE_S = 0.1
"""CPU time for which the server's loop may be held up."""
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def slow(make_server: StartServer) -> Iterator[LiveServer]:
    """A server whose streams last, with a limit on bodies that a test can reach."""
    live = make_server("--step-ms", "5", max_request_bytes=8 << 20, receive_timeout_s=PATIENCE_S)
    yield live
    live.stop()


@pytest.fixture(scope="module")
def impatient(make_server: StartServer) -> Iterator[LiveServer]:
    """A server that waits for the rest of a request for no longer than a second."""
    live = make_server(receive_timeout_s=1.0)
    yield live
    live.stop()


def _connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=PATIENCE_S)


def _raw(server: LiveServer, request: bytes) -> bytes:
    """What the server sends until it closes, or until an answer with a body is complete."""
    with _connect(server) as connection:
        with contextlib.suppress(ConnectionError):  # It did not want the rest; what it said stands in the buffer.
            connection.sendall(request)
        return _answer(connection)


def _answer(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = connection.recv(1 << 16)
        except ConnectionError:
            return received
        received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = [
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        if not data or (length and len(body) >= length[0]):
            return received


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def _post(path: str, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"host: x", b"content-type: application/json", *headers]
    return b"\r\n".join([*lines, b"", body])


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _chat(**fields: Any) -> bytes:
    return json.dumps({"messages": MESSAGES, **fields}).encode()


def _with(field: bytes, value: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "hi"}], "%s": %s}' % (field, value)


HOSTILE_CHAT = {
    "empty": b"",
    "half": b'{"messages": [',
    "not an object": b"[]",
    "null": b"null",
    "a string": b'"' + b"x" * 1_000_000 + b'"',
    "NUL bytes": b"\x00" * 100,
    "invalid UTF-8": _with(b"user", b'"\xff\xfe"'),
    "brackets in the body": _nested(100_000),
    "braces in the body": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "brackets in tools": _with(b"tools", _nested(100_000)),
    "brackets in a schema": _with(b"response_format", _nested(100_000)),
    "brackets in the template's variables": _with(b"chat_template_kwargs", b'{"x": ' + _nested(5_000) + b"}"),
    "NaN": _with(b"temperature", b"NaN"),
    "Infinity": _with(b"top_p", b"Infinity"),
    "minus Infinity": _with(b"frequency_penalty", b"-Infinity"),
    "1e999": _with(b"temperature", b"1e999"),
    "10**5000": _with(b"max_tokens", b"1" + b"0" * 5000),
    "10**4000 choices": _with(b"n", b"1" + b"0" * 4000),
    "-10**5000 in an unknown field": _with(b"unknown", b"-1" + b"0" * 5000),
    "10**9 choices": _chat(n=10**9, temperature=1),
    "seed": _chat(seed=2**63),
    "lone surrogate in content": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "lone surrogate in a role": b'{"messages": [{"role": "\\udfff", "content": "x"}]}',
    **{
        f"lone surrogate in {field.decode()}": _with(field, b'"\\ud800"')
        for field in (b"stop", b"model", b"user", b"request_id", b"cache_salt", b"chat_template", b"session_id")
    },
    "lone surrogate in metadata": _with(b"metadata", b'{"a": "\\udc00"}'),
    "lone surrogate as a name": _with(b"\\ud800", b"1"),
    "NUL in request_id": _chat(request_id="a\x00b"),
    "NUL in cache_salt": _chat(cache_salt="a\x00b"),
    "NUL in model": _chat(model="a\x00b"),
    "a megabyte of stop strings": _chat(stop=["x" * 250_000 + str(i) for i in range(4)]),
    "a quarter of a million stop strings": _chat(stop=["x"] * 250_000),
    "10,000 biases": _chat(logit_bias={str(i): 1 for i in range(10_000)}),
    "a bias of a token with 5,000 digits": _chat(logit_bias={"9" * 5000: 1}),
    "a bias of 2**63": _chat(logit_bias={str(2**63): 1}),
    "a bias of NaN": _with(b"logit_bias", b'{"1": NaN}'),
    "100,000 messages": _chat(messages=MESSAGES * 100_000),
    "30,000 messages": _chat(messages=MESSAGES * 30_000),
    "100,000 messages of the wrong type": _chat(messages=[""] * 100_000),
    "1,500,000 fields": b'{"messages":[],' + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}",
    "a message of a megabyte": _chat(messages=[{"role": "user", "content": "x" * 1_000_000}]),
    "stop tokens beyond int64": _chat(stop_token_ids=[2**63]),
    "a name of the model of a megabyte": _chat(model="m" * 1_000_000),
    "a request id of a megabyte": _chat(request_id="r" * 1_000_000),
}
HOSTILE_COMPLETIONS = {
    "a million characters": {"prompt": "x" * 1_000_000},
    "just under the guard": {"prompt": "ab " * 640},
    "900,000 ids": {"prompt": [5] * 900_000},
    "ids out of the vocabulary": {"prompt": [5, 300]},
    "an id of 2**63": {"prompt": [2**63]},
    "an id of 10**30": {"prompt": [10**30]},
    "a negative id": {"prompt": [-(2**63)]},
    "lists in lists in lists": {"prompt": [[[1]]]},
    "a mix": {"prompt": [1, "a"]},
    "a mix of lists": {"prompt": [[1], ["a"]]},
    "a list and a number": {"prompt": [[1], 2]},
    "a million wrong ids": {"prompt": [{}] * 300_000},
    "1,025 prompts": {"prompt": ["a"] * 1025},
    "an object": {"prompt": {"text": "a"}},
    "10**9 logprobs": {"prompt": "a", "logprobs": 10**9},
    "a truncation of 10**30": {"prompt": "a", "truncate_prompt_tokens": 10**30},
}


@pytest.mark.parametrize("name", HOSTILE_CHAT)
def test_a_hostile_chat_is_refused_at_once(slow: LiveServer, name: str) -> None:
    _check_refusal(slow, CHAT, HOSTILE_CHAT[name])


@pytest.mark.parametrize("name", HOSTILE_COMPLETIONS)
def test_a_hostile_completion_is_refused_at_once(slow: LiveServer, name: str) -> None:
    _check_refusal(slow, COMPLETIONS, json.dumps(HOSTILE_COMPLETIONS[name]).encode())


def _check_refusal(server: LiveServer, path: str, body: bytes) -> None:
    post = functools.partial(server.http.post, path, content=body, headers=JSON)
    began = time.process_time()
    response = post()
    took_s = time.process_time() - began
    assert 400 <= response.status_code < 500, response.text[:500]
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) < 20_000
    assert took_s < AT_ONCE_S
    undisturbed(server, post, PACE_S)


def test_the_largest_bodies_that_are_parsed_hold_up_nobody(slow: LiveServer) -> None:
    bodies = {
        "ids": b'{"prompt": [' + b"1," * 900_000 + b"1]}",
        "unknown fields": b'{"prompt": "x",' + b",".join(b'"%d":1' % i for i in range(105_000)) + b"}",
        "text": b'{"prompt": "' + b"x, [" * 1_900_000 + b'"}',
        "quotation marks": b'{"prompt": "' + b'\\"' * 3_500_000 + b'"}',
        "strings": b'{"x": [' + b'"",' * 900_000 + b'""]}',
    }
    for name, body in bodies.items():
        post = functools.partial(slow.http.post, COMPLETIONS, content=body, headers=JSON)
        assert undisturbed(slow, post, 2 * PACE_S).status_code in (200, 400), name


def test_text_full_of_commas_is_not_taken_for_many_values(slow: LiveServer) -> None:
    response = slow.http.post(COMPLETIONS, json={"prompt": "1,[{:" * 400_000})
    assert response.json()["error"]["param"] == "input_text", "it was parsed, and is too long as a prompt"
    values = slow.http.post(COMPLETIONS, content=b'{"prompt": [' + b"1," * 1_100_000 + b"1]}", headers=JSON)
    assert "too many JSON values" in values.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(slow: LiveServer) -> None:
    request = _post(COMPLETIONS, b"{", b"content-length: %d" % (9 << 20))
    answer = undisturbed(slow, lambda: _raw(slow, request), PACE_S)
    assert _status(answer) == 413
    assert b"--max-request-bytes" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_over_the_limit_is_refused_where_its_length_is_not_told(slow: LiveServer) -> None:
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    request = _post(COMPLETIONS, chunk * 12, b"transfer-encoding: chunked")
    assert _status(undisturbed(slow, lambda: _raw(slow, request), PACE_S)) == 413


def test_a_body_below_the_limit_is_read_whole(slow: LiveServer) -> None:
    body = b'{"prompt": "abc", "max_tokens": 3, "padding": "' + b"x" * (7 << 20) + b'"}'
    assert slow.http.post(COMPLETIONS, content=body, headers=JSON).json()["choices"][0]["text"] == "abc"


@pytest.mark.parametrize("length", [b"99999999999999999999999", b"-1", b"abc", b"1, 2", b"0x10", b""])
def test_a_content_length_that_is_none(slow: LiveServer, length: bytes) -> None:
    assert _status(_raw(slow, _post(COMPLETIONS, b'{"prompt": "x"}', b"content-length: " + length))) in (400, 413)


def test_a_content_length_that_is_too_long_ends_in_a_timeout(impatient: LiveServer) -> None:
    answer = _raw(impatient, _post(COMPLETIONS, b'{"prompt": "x"}', b"content-length: 100"))
    assert _status(answer) == 408
    assert b"did not arrive in time" in answer


def test_a_content_length_that_is_too_short_breaks_the_json(slow: LiveServer) -> None:
    assert _status(_raw(slow, _post(COMPLETIONS, b'{"prompt": "x"}', b"content-length: 5"))) == 400


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-a: b"])
def test_a_head_that_never_ends_is_cut_off(impatient: LiveServer, sent: bytes) -> None:
    began = time.monotonic()
    answer = _raw(impatient, sent)
    assert time.monotonic() - began > 0.9, "not before its second is over"
    assert _status(answer) == 408 if sent else answer == b""


def test_a_body_that_drips_is_cut_off(impatient: LiveServer) -> None:
    with _connect(impatient) as connection:
        connection.sendall(_post(COMPLETIONS, b"", b"content-length: 100000"))
        connection.settimeout(0.05)
        answers: list[bytes] = []
        wait_until(lambda: _drip(connection, answers))
    assert _status(answers[0]) == 408


def _drip(connection: socket.socket, answers: list[bytes]) -> bool:
    """Send a byte; whether there was an answer to it."""
    connection.sendall(b" ")
    with contextlib.suppress(TimeoutError):
        answers.append(connection.recv(1 << 16))
    return bool(answers)


def test_an_idle_connection_may_stay_between_requests(impatient: LiveServer) -> None:
    with _connect(impatient) as connection:
        for _ in range(2):
            connection.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
            assert _status(_answer(connection)) == 200
            time.sleep(1.3)


@pytest.mark.parametrize(
    "head",
    [
        b"x-a: " + b"a" * (1 << 20),
        b"\r\n".join(b"x-%d: %s" % (i, b"a" * 100) for i in range(5_000)),
        b"\r\n".join(b"x: y" for _ in range(100_000)),
    ],
)
def test_a_flood_of_headers_is_refused(slow: LiveServer, head: bytes) -> None:
    answer = undisturbed(slow, lambda: _raw(slow, _post(COMPLETIONS, b"", head, b"content-length: 0")), PACE_S)
    assert answer == b"" or _status(answer) == 431, "refused, unless the reset of the connection was faster"


def test_a_long_url_is_refused(slow: LiveServer) -> None:
    assert _status(_raw(slow, b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 100_000))) == 431


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([b"transfer-encoding: chunked", b"content-length: 5"], b"0\r\n\r\n"),
        ([b"transfer-encoding: gzip"], b""),
        ([b"transfer-encoding: chunked, gzip"], b"0\r\n\r\n"),
        ([b"transfer-encoding: chunked"], b"zz\r\n\r\n"),
        ([b"transfer-encoding: chunked"], b"ffffffffffffffffff\r\nx\r\n"),
        ([b"content-length: 15", b"content-length: 16"], b'{"prompt": "x"}'),
        ([b"bad header: x"], b""),
    ],
)
def test_an_odd_framing_is_refused(slow: LiveServer, headers: list[bytes], body: bytes) -> None:
    answer = _raw(slow, _post(COMPLETIONS, body, *headers))
    assert _status(answer) == 400
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_what_is_not_http_gets_the_envelope(slow: LiveServer) -> None:
    answer = _raw(slow, b"\x16\x03\x01 hello\r\n\r\n")
    assert _status(answer) == 400
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "Bad Request"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x" * 5000])
def test_a_compressed_body_is_refused_by_name(slow: LiveServer, encoding: str) -> None:
    response = slow.http.post(COMPLETIONS, content=b"\x1f\x8b", headers={**JSON, "content-encoding": encoding})
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["error"]["message"]
    assert encoding[:40] in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_refused(slow: LiveServer, method: str, path: str) -> None:
    response = slow.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        assert response.json()["error"]["type"] == "Method Not Allowed"


def test_of_a_field_that_is_given_twice_the_last_counts(slow: LiveServer) -> None:
    body = b'{"prompt": "xyz", "prompt": "abc", "max_tokens": 3}'
    assert slow.http.post(COMPLETIONS, content=body, headers=JSON).json()["choices"][0]["text"] == "abc"


def test_nul_and_odd_characters_in_a_prompt_are_text(slow: LiveServer) -> None:
    prompt = "a\x00b\u2028\ufffe\U0010ffff"
    done = slow.complete(prompt, max_tokens=len(prompt.encode()), temperature=0)
    assert done["choices"][0]["text"] == prompt


BODIES_OF_NO_ROUTE = {
    "nothing": b"",
    "half": b'{"model": "tiny", ',
    "not an object": b'["tiny"]',
    "invalid UTF-8": b'{"model": "\xff"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "brackets": _nested(100_000),
    "brackets in a field": b'{"messages": %s, "input": %s, "prompt": %s}' % ((_nested(50_000),) * 3),
    "a number of 5,000 digits": b'{"max_tokens": 1' + b"0" * 5000 + b"}",
    "too many values": b'{"x": [' + b"1," * 1_100_000 + b"1]}",
}
TAKE_BODIES = sorted(path for path in BODIES)


@pytest.mark.parametrize("path", TAKE_BODIES)
def test_no_route_is_hurt_by_a_body_that_is_none(slow: LiveServer, path: str) -> None:
    for name, content in BODIES_OF_NO_ROUTE.items():
        post = functools.partial(slow.http.post, path, content=content, headers=JSON)
        response = undisturbed(slow, post, 2 * PACE_S)
        assert 400 <= response.status_code < 500, f"{name}: {response.text[:300]}"
        jsonschema.validate(response.json(), error_schema(Dialect.of(path)))


@pytest.mark.parametrize("path", TAKE_BODIES)
def test_every_route_has_the_limits_of_a_body(slow: LiveServer, path: str) -> None:
    too_long = _raw(slow, _post(path, b"{", b"content-length: %d" % (9 << 20)))
    assert _status(too_long) == 413
    compressed = slow.http.post(path, content=b"\x1f\x8b", headers={**JSON, "content-encoding": "gzip"})
    assert compressed.status_code == 415
    jsonschema.validate(compressed.json(), error_schema(Dialect.of(path)))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"prompt": ["a"] * 1024, "n": 2, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": "a", "n": 2048, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": "a b " * 60, "logprobs": 20, "n": 64, "max_tokens": 10}),
        (COMPLETIONS, {"prompt": "a", "stop": ["a" * 1023 + "b"] * 4, "n": 64, "max_tokens": 200, "ignore_eos": True}),
    ],
)
def test_the_largest_requests_hold_up_nobody(slow: LiveServer, path: str, fields: dict[str, Any]) -> None:
    """The engine, a stand-in that takes them all into one step, needs a part of the time."""
    post = functools.partial(slow.http.post, path, json={"temperature": 1, **fields}, timeout=PATIENCE_S)
    response = undisturbed(slow, post, 4 * PACE_S)
    assert response.status_code == 200, response.text[:300]
