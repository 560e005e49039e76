"""Where a server listens, what is read again on SIGHUP, and whom the log says a request came from."""

import logging
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from jserve.api.access.limits_file import read_limits
from jserve.api.http.listener import listen_at
from jserve.errors import StartupError
from tests.api.http.test_tls import certify
from tests.api.live_server import StartServer
from tests.patience import wait_until


def test_a_unix_socket_answers_and_belongs_to_one_server(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "socket"
    live = start_server(uds=path, wait=False)
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://server.example") as client:
        wait_until(lambda: client.get("/ready").status_code == 200)
        with caplog.at_level(logging.INFO, "jserve.api.http.edge"):
            body = {"prompt": "abc", "max_tokens": 2}
            answer = client.post("/v1/completions", json=body, headers={"x-forwarded-for": "203.0.113.7"})  # is trusted
            wait_until(lambda: any(line.endswith("s for 203.0.113.7") for line in caplog.messages))
        assert answer.json()["usage"]["completion_tokens"] == 2
    assert live.server.url == f"unix:{path}"
    with pytest.raises(StartupError, match="in use"):
        listen_at(path)


def test_a_socket_that_nobody_listens_on_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    listen_at(path).close()
    (other := tmp_path / "file").write_text("mine")
    with pytest.raises(StartupError, match="is no socket"):
        listen_at(other)
    assert other.read_text() == "mine"


@pytest.mark.parametrize(("trusted", "logged"), [("127.0.0.0/8", "203.0.113.7%20x"), ("198.51.100.1", "127.0.0.1")])
def test_the_log_has_the_address_that_a_trusted_proxy_names(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, trusted: str, logged: str
) -> None:
    live = start_server(forwarded_allow_ips=trusted)
    with caplog.at_level(logging.INFO, "jserve.api.http.edge"):
        live.http.get("/v1/models", headers={"x-forwarded-for": "203.0.113.7 x"})
        wait_until(lambda: any(each.name == "jserve.api.http.edge" for each in caplog.records))
    (record,) = [each for each in caplog.records if each.name == "jserve.api.http.edge"]
    assert record.getMessage().endswith(f" s for {logged}")
    assert record.__dict__["client"] == logged


@pytest.mark.parametrize("health_when", ["alive", "ready"])
def test_health_follows_the_process_or_the_model(start_server: StartServer, tmp_path: Path, health_when: str) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False, health_when=health_when)
    live.wait_for(lambda: live.status("/version") == 200)
    assert live.status("/health") == live.status("/ping") == (200 if health_when == "alive" else 503)
    hold.unlink()
    live.wait_until_ready()
    assert live.status("/health") == 200


def test_certificate_and_limits_are_read_again(
    start_server: StartServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key, certificate = certify(tmp_path)
    limits = tmp_path / "limits.yaml"
    limits.write_text("default: {requests_per_minute: 5}")
    live = start_server(
        wait=False, ssl_keyfile=key, ssl_certfile=certificate, limits_file=limits, limits=read_limits(limits)
    )
    url = live.url.replace("http:", "https:")

    def posted() -> httpx.Response:
        context = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
        with httpx.Client(base_url=url, verify=context) as client:
            wait_until(lambda: client.get("/ready").status_code == 200)
            return client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1})

    assert posted().headers["x-ratelimit-remaining-requests"] == "4"
    old = certificate.read_bytes(), key.read_bytes()
    certify(tmp_path)
    limits.write_text("default: {requests_per_minute: 3}")
    with caplog.at_level(logging.INFO):
        live.loop.call_soon_threadsafe(live.server.reload)
        wait_until(lambda: any("read again" in line for line in caplog.messages))
    assert posted().headers["x-ratelimit-remaining-requests"] == "1", "what was used before counts"
    key.write_bytes(old[1])
    limits.write_text("default: 3")
    with caplog.at_level(logging.ERROR):
        live.loop.call_soon_threadsafe(live.server.reload)
        wait_until(lambda: any("limits stay" in line for line in caplog.messages))
    assert any("certificate stays" in line for line in caplog.messages)
    assert posted().headers["x-ratelimit-limit-requests"] == "3"
