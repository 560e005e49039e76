"""Descriptors: the soft limit is raised at the start, and connections leave some for the engine."""

import json
import subprocess
import sys

import httpx
import pytest

from jserve.api.http.descriptors import connection_limit
from tests.api.http.raw_connection import RawConnection
from tests.api.live_server import StartServer

_PROGRAM = """
import resource
from jserve.api.http.descriptors import connection_limit, raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 600))
before = connection_limit(None)
raise_descriptor_limit()
print(before, resource.getrlimit(resource.RLIMIT_NOFILE)[0], connection_limit(None), connection_limit(7))
"""


def test_the_soft_limit_is_raised_and_some_are_kept_back() -> None:
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["36", "600", "536", "7"]


@pytest.mark.parametrize("wanted", [None, 1, 10**9])
def test_the_limit_is_at_least_one_and_never_above_what_was_wanted(wanted: int | None) -> None:
    assert 1 <= connection_limit(wanted) <= (wanted or 1 << 14)


def test_a_request_on_a_connection_too_many_hears_503(start_server: StartServer) -> None:
    """Each time: a reset, which a request that is not read would cause, can take the answer along."""
    live = start_server(max_connections=1)
    live.http.get("/health")
    body = {"prompt": "abc" * 1000, "max_tokens": 1}
    for _ in range(50):
        with httpx.Client(base_url=live.url) as client:
            answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_connection_too_many_hears_503_and_others_go_on(start_server: StartServer) -> None:
    live = start_server(max_connections=3)
    assert live.status("/version") == 200, "the client of the test keeps this one open"
    with RawConnection(live.url), RawConnection(live.url) as second, RawConnection(live.url) as refused:
        head, _, body = refused.rest().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert "connections" in json.loads(body)["error"]["message"]
        second.send(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert second.answer()[0] == 200
