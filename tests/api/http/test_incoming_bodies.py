"""Bodies that are still coming: their sum is bounded, the largest gives way, and each must keep a pace."""

import json
import time

import pytest

from jserve.api.access.incoming_bodies import IncomingBodies
from tests.api.http.raw_connection import RawConnection, post
from tests.api.live_server import LiveServer, StartServer

PATH = "/v1/completions"
BODY = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
LIMIT = 1 << 20


@pytest.fixture
def live(start_server: StartServer) -> LiveServer:
    """A server that holds 8 MiB of bodies, and wants 500 bytes of each in a second."""
    return start_server(max_request_bytes=LIMIT, receive_timeout_s=1.0)


def _bodies(live: LiveServer) -> IncomingBodies:
    return live.server.context.bodies


def test_their_sum_is_bounded_and_small_ones_pass(start_server: StartServer) -> None:
    live = start_server(max_request_bytes=LIMIT, receive_timeout_s=30.0)
    unfinished = post(PATH, b" " * (LIMIT - 100), b"content-length: %d" % LIMIT)
    raws = [RawConnection(live.url) for _ in range(20)]
    try:
        for raw in raws:
            raw.send(unfinished)
        live.wait_for(lambda: _bodies(live).num_bytes >= 7 * LIMIT)
        assert _bodies(live).num_bytes <= 8 * LIMIT
        live.wait_for(lambda: live.metric("http_requests_total", status="5xx") >= 12)
        assert live.complete("abc", max_tokens=3)["choices"][0]["text"] == "abc"
        assert _bodies(live).num_bytes <= 8 * LIMIT
    finally:
        for raw in raws:
            raw.close()
    live.wait_for(lambda: _bodies(live).num_bytes == 0)


def test_the_one_that_gives_way_hears_503(live: LiveServer) -> None:
    bodies = _bodies(live)
    bodies.max_bytes = 1 << 17
    with RawConnection(live.url) as raw:
        raw.send(post(PATH, b" " * (1 << 18), b"content-length: %d" % LIMIT))
        status, headers, content = raw.answer()
    assert (status, headers["retry-after"], headers["connection"].lower()) == (503, "1", "close")
    assert "at once" in json.loads(content)["error"]["message"]
    live.wait_for(lambda: bodies.num_bytes == 0)


def test_the_last_bytes_of_a_large_body_have_no_more_time_than_the_first(live: LiveServer) -> None:
    """The clock is not advanced by what came long ago: 1 MiB used to buy half an hour for the rest."""
    with RawConnection(live.url) as raw:
        raw.send(post(PATH, b" " * (LIMIT - 10), b"content-length: %d" % LIMIT))
        assert raw.answer()[0] == 408


def test_a_body_that_keeps_the_pace_may_take_longer_than_the_timeout(live: LiveServer) -> None:
    with RawConnection(live.url) as raw:
        raw.send(post(PATH, b"", b"content-length: %d" % (len(BODY) + 3000)))
        began = time.monotonic()
        for _ in range(6):
            raw.send(b" " * 500)
            time.sleep(0.25)
        raw.send(BODY)
        assert raw.answer()[0] == 200
        assert time.monotonic() - began > 1.2, "longer than the timeout"


def test_an_answered_request_gives_its_memory_back(live: LiveServer) -> None:
    live.complete("abc", max_tokens=1, user="x" * 200_000)
    live.http.post(PATH, content=b"{" + b" " * 200_000, headers={"content-type": "application/json"})
    assert _bodies(live).num_bytes == 0
