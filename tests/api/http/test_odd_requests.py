"""Requests that are odd but mean well: HTTP/1.0, a slash too many, HEAD, a byte order mark."""

import json

import httpx
import pytest

from jserve.api.app import ROUTES, build_app
from jserve.api.http.route_paths import RoutePaths
from tests.api.http.raw_connection import RawConnection, post
from tests.api.live_server import LiveServer, StartServer

CHAT = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3, "stream": True}
STREAMS = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 3, "stream": True},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "abc", "max_output_tokens": 3, "stream": True},
    "/v1/messages": CHAT,
    "/api/chat": {**CHAT, "model": "tiny"},
    "/api/generate": {"model": "tiny", "prompt": "abc", "stream": True},
}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("headers", [(), (b"connection: keep-alive",)], ids=["", "keep-alive"])
def test_a_stream_over_http_1_0_has_no_chunks_and_ends_with_the_connection(
    server: LiveServer, path: str, headers: tuple[bytes, ...]
) -> None:
    body = json.dumps(STREAMS[path]).encode()
    with RawConnection(server.url) as raw:
        raw.send(post(path, body, *headers, version=b"1.0"))
        head, _, received = raw.rest().partition(b"\r\n\r\n")
    assert b" 200 OK" in head
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    whole = server.http.post(path, json=STREAMS[path])
    assert received.count(b"\n") == whole.content.count(b"\n")
    for line in filter(None, received.splitlines()):
        assert line == b"data: [DONE]" or line.startswith(b"event: ") or json.loads(line.removeprefix(b"data: "))


def test_an_answer_over_http_1_0_has_its_length(server: LiveServer) -> None:
    body = json.dumps({"prompt": "abc", "max_tokens": 3}).encode()
    with RawConnection(server.url) as raw:
        raw.send(post("/v1/completions", body, version=b"1.0"))
        status, headers, content = raw.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert json.loads(content)["choices"][0]["text"] == "abc"


def test_a_stream_over_http_1_0_that_fails_says_so(start_server: StartServer) -> None:
    """The last event of a stream that ends early takes the same way as that of a good one."""
    live = start_server("--error-token", "9")
    body = json.dumps({"prompt": [8, 9], "stream": True}).encode()
    with RawConnection(live.url) as raw:
        raw.send(post("/v1/completions", body, version=b"1.0"))
        events = raw.rest().partition(b"\r\n\r\n")[2].split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert json.loads(events[-3].removeprefix(b"data: "))["error"]["message"] == "the page was torn"


POSTS = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 3},
    "/v1/chat/completions": {**CHAT, "stream": False},
    "/v1/messages": {**CHAT, "stream": False},
    "/api/chat": {**CHAT, "model": "tiny", "stream": False},
    "/tokenize": {"prompt": "abc"},
}


@pytest.mark.parametrize("path", POSTS)
def test_a_slash_too_many_changes_nothing(server: LiveServer, path: str) -> None:
    expected = server.http.post(path, json=POSTS[path])
    assert expected.status_code == 200
    for odd in (f"{path}/", f"/{path}", path.replace("/", "//"), f"{path}//"):
        answer = httpx.post(f"{server.url}{odd}", json=POSTS[path], follow_redirects=False)
        assert answer.status_code == 200, odd
        assert answer.json().keys() == expected.json().keys()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/health", "/api/tags", "/docs", "/openapi.json"])
def test_so_do_slashes_of_a_get(server: LiveServer, path: str) -> None:
    for odd in (path, f"{path}/", f"/{path}"):
        assert httpx.get(f"{server.url}{odd}", follow_redirects=False).status_code == 200, odd
    assert httpx.get(f"{server.url}{path}/none", follow_redirects=False).status_code == 404


def test_a_name_with_slashes_of_its_own_keeps_them(server: LiveServer) -> None:
    paths = RoutePaths(build_app(server.server.context).routes)
    assert paths.meant_by("//v1//models//models/a//b.gguf") == "/v1/models//models/a//b.gguf"
    assert paths.meant_by("/v1/models/") == "/v1/models"
    assert paths.meant_by("/") == paths.meant_by("//") == "/"
    name = server.server.context.settings.model_names[-1]
    assert httpx.get(f"{server.url}/v1/models/{name}").status_code in (200, 404)


def test_metrics_count_the_route_not_the_spelling(server: LiveServer) -> None:
    before = server.metric("http_requests_total", handler="/v1/models")
    httpx.get(f"{server.url}//v1/models/")
    assert server.metric("http_requests_total", handler="/v1/models") == before + 1


@pytest.mark.parametrize("path", sorted({path for method, path, _ in ROUTES if method == "GET" and "{" not in path}))
def test_head_is_answered_where_get_is(server: LiveServer, path: str) -> None:
    get, head = server.http.get(path), server.http.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers.get("content-type") == get.headers.get("content-type")


def test_head_of_one_model(server: LiveServer) -> None:
    assert server.http.head("/v1/models/tiny").status_code == 200
    assert server.http.head("/v1/models/none").status_code == 404


@pytest.mark.parametrize("path", POSTS)
def test_a_byte_order_mark_before_the_json_is_skipped(server: LiveServer, path: str) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(POSTS[path]).encode()
    answer = server.http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
