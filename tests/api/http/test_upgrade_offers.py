"""An offer to speak another protocol is ignored: the request is answered as HTTP/1.1, and so is the one behind it.

Reported as uvicorn#2722, httptools#124 and vllm#57203: the JDK's client offers h2c with each first request.
"""

import json

import pytest

from tests.api.http.raw_connection import RawConnection, post
from tests.api.live_server import LiveServer

PATH = "/v1/completions"
BODY = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
OFFERS = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk"),
    "websocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
    "something else, with keep-alive": (b"connection: keep-alive, upgrade", b"upgrade: TLS/1.2, foo/2"),
}


def _text(answer: tuple[int, dict[str, str], bytes]) -> str:
    status, headers, body = answer
    assert status == 200, body
    assert "upgrade" not in headers
    text: str = json.loads(body)["choices"][0]["text"]
    return text


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_the_request_is_answered_and_the_connection_goes_on(server: LiveServer, offer: tuple[bytes, ...]) -> None:
    with RawConnection(server.url) as raw:
        for _ in range(2):
            raw.send(post(PATH, BODY, *offer))
            assert _text(raw.answer()) == "abc"


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_requests_behind_it_in_the_same_packet_are_answered(server: LiveServer, offer: tuple[bytes, ...]) -> None:
    with RawConnection(server.url) as raw:
        get = b"GET /version HTTP/1.1\r\nhost: localhost\r\n" + b"\r\n".join(offer) + b"\r\n\r\n"
        raw.send(post(PATH, BODY, *offer) + get + post(PATH, BODY))
        assert _text(raw.answer()) == "abc"
        assert "version" in json.loads(raw.answer()[2])
        assert _text(raw.answer()) == "abc"


def test_a_body_in_chunks_and_in_small_packets_is_whole(server: LiveServer) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    request = post(PATH, chunks, *OFFERS["h2c"], b"transfer-encoding: chunked")
    with RawConnection(server.url) as raw:
        for start in range(0, len(request), 7):
            raw.send(request[start : start + 7])
        assert _text(raw.answer()) == "abc"


def test_a_stream_is_a_stream(server: LiveServer) -> None:
    body = json.dumps({"prompt": "abc", "max_tokens": 3, "stream": True}).encode()
    with RawConnection(server.url) as raw:
        raw.send(post(PATH, body, *OFFERS["h2c"]) + post(PATH, BODY, b"connection: close"))
        received = raw.rest()
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b"data: [DONE]" in received


def test_an_offer_that_also_closes_is_answered_and_closed(server: LiveServer) -> None:
    with RawConnection(server.url) as raw:
        raw.send(post(PATH, BODY, b"connection: close, upgrade", b"upgrade: h2c"))
        assert b'"text":"abc"' in raw.rest()


def test_the_head_of_an_offer_has_the_limits_of_every_head(server: LiveServer) -> None:
    with RawConnection(server.url) as raw:
        raw.send(post(PATH, BODY, *OFFERS["h2c"], *(b"x-%d: %b" % (i, b"a" * 1000) for i in range(100))))
        assert b"431" in raw.rest().partition(b"\r\n")[0]


def test_connect_is_refused(server: LiveServer) -> None:
    with RawConnection(server.url) as raw:
        raw.send(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
        assert int(raw.rest().split()[1]) in (400, 404, 405)
