"""Which names of the server are taken: against pages whose own name points to 127.0.0.1."""

import socket

import httpx
import pytest

from jserve.api.http.host_names import HostNames
from tests.api.live_server import StartServer

SAFE = ("localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "a.localhost:1", "x")
OTHERS = (
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.nip.io",
    "localhost.evil.example",
    "[::1",
    "1.2.3.4.5",
    "a.b@c.d",
)


def _scope(*hosts: str, server: str = "127.0.0.1") -> dict[str, object]:
    return {"headers": [(b"host", host.encode()) for host in hosts], "server": (server, 8000)}


def test_without_a_key_loopback_takes_names_that_no_site_can_have() -> None:
    names = HostNames((), needs_key=False)
    assert [host for host in (*SAFE, socket.gethostname()) if names.refused_in(_scope(host)) is not None] == []
    assert [names.refused_in(_scope(host)) for host in OTHERS] == list(OTHERS)
    assert names.refused_in(_scope("localhost", "evil.example")) == "evil.example"
    assert names.refused_in(_scope()) is None, "HTTP/1.0 knows no Host, and browsers always send it"
    for server in ("::1", "::ffff:127.0.0.1", "127.8.8.8"):
        assert names.refused_in(_scope("evil.example", server=server)) is not None
    for server in ("10.0.0.1", "fe80::1"):
        assert names.refused_in(_scope("gpu.example", server=server)) is None, "a server for others has any name"


def test_with_a_key_any_name_is_taken_unless_told_otherwise() -> None:
    assert HostNames((), needs_key=True).refused_in(_scope("evil.example")) is None
    names = HostNames(("API.example", "*.svc.example"), needs_key=True)
    for host in ("api.example:443", "a.svc.example", "localhost"):
        assert names.refused_in(_scope(host, server="10.0.0.1")) is None
    for host in ("evil.example", "svc.example.evil.example", "a.b.svc.example"):
        assert names.refused_in(_scope(host, server="10.0.0.1")) == host
    assert HostNames(("*",), needs_key=False).refused_in(_scope("evil.example")) is None


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages", "/api/tags", "/metrics", "/docs", "/none"])
def test_the_server_refuses_and_says_what_to_do(start_server: StartServer, path: str) -> None:
    live = start_server()
    refused = httpx.request(
        "POST" if "messages" in path else "GET", f"{live.url}{path}", headers={"host": "evil.example"}
    )
    assert refused.status_code == 403
    assert "--allowed-hosts" in refused.text
    assert httpx.get(f"{live.url}/health", headers={"host": "evil.example"}).status_code == 200, "probes carry anything"


def test_a_name_that_was_given_is_taken(start_server: StartServer) -> None:
    live = start_server(allowed_hosts=("api.example",))
    assert httpx.get(f"{live.url}/v1/models", headers={"host": "api.example"}).status_code == 200
    assert httpx.get(f"{live.url}/v1/models", headers={"host": "evil.example"}).status_code == 403
