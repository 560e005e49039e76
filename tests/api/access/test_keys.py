"""API keys: where they come from, what they guard, and that no spelling of a path gets around them."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from jserve.api.access.key_file import digest_of, read_key_file
from jserve.api.access.keys import KeyRing
from jserve.commands.options import parse
from jserve.errors import ConfigError
from tests.api.live_server import LiveServer, StartServer
from tests.commands.test_serve import Command, start  # noqa: F401
from tests.patience import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def locked(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server(api_keys=("one", "two"))
    yield live
    live.stop()


def _bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_key_ring_knows_its_keys_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# staff\n\nthree\n  four  \n")
    ring = KeyRing(("one", "ünicode"), file)
    for key in ("one", "ünicode", "three", "four"):
        assert ring.find(_bearer(key)) == ring.find({b"x-api-key": key.encode()}) is not None
    for key in ("", "o", "onee", "# staff", "One"):
        assert ring.find(_bearer(key)) is None
    assert ring.find({}) is None
    ids = {ring.find(_bearer(key)).id for key in ("one", "three", "four")}  # type: ignore[union-attr]
    assert len(ids) == 3
    assert not ids & {"one", "three", "four"}, "an id never shows the key"


def test_a_key_keeps_its_tenant_and_no_other_key_gets_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("b\nc\n")
    ring = KeyRing(("a",), file)

    def tenant(key: str) -> int:
        api_key = ring.find(_bearer(key))
        assert api_key is not None
        return api_key.tenant

    before = {key: tenant(key) for key in "abc"}
    assert len({0, *before.values()}) == 4, "0 is for those without a key"
    file.write_text("d\nc\n")
    ring.reload()
    assert (tenant("a"), tenant("c")) == (before["a"], before["c"])
    assert tenant("d") not in before.values()
    file.write_text("b\n")
    ring.reload()
    assert tenant("b") == before["b"]


def test_a_ring_without_keys_lets_everybody_in() -> None:
    key = KeyRing().find({})
    assert key is not None
    assert key.is_anonymous


def test_reloading_adds_and_revokes_and_survives_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    ring = KeyRing((), file)
    file.write_text("new\n")
    ring.reload()
    assert ring.find(_bearer("new")) is not None
    assert ring.find(_bearer("old")) is None
    for spoil in (lambda: file.write_text("# nothing\n"), file.unlink):
        spoil()
        ring.reload()
        assert ring.find(_bearer("new")) is not None
        assert ring.find(_bearer("old")) is None
        assert ring.find({}) is None


@pytest.mark.parametrize(("content", "text"), [("", "holds no key"), ("# x\n\n", "holds no key"), (None, "cannot be")])
def test_a_key_file_without_keys_stops_the_start(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        parse(["--model", "m", "--api-key-file", str(file)])


def test_the_environment_counts_where_no_flag_gives_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("filed\n")
    monkeypatch.setenv("VLLM_API_KEY", "from-vllm")
    assert parse(["--model", "m"])[1].api_keys == ("from-vllm",)
    monkeypatch.setenv("JSERVE_API_KEY", "from-jserve")
    assert parse(["--model", "m"])[1].api_keys == ("from-jserve",)
    assert parse(["--model", "m", "--api-key", "flag"])[1].api_keys == ("flag",)
    settings = parse(["--model", "m", "--api-key-file", str(file)])[1]
    assert (settings.api_keys, settings.api_key_file) == ((), file)
    assert [entry.digest for entry in read_key_file(file)] == [digest_of("filed")]


def _raw_status(live: LiveServer, target: str, method: str = "GET") -> int:
    """The status of a request whose target is sent as it is, which clients would tidy up."""
    port = int(live.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode("latin-1"))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "/V1/models",
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models?x=/health",
        "/v1/models#/health",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health%2f..%2fv1%2fmodels",
        "/v1/models;/health",
        "/v1/models/..;/health",
        "/./v1/models",
        "/HEALTH",
        "/health%00",
        "/health/x",
        "/ready/../metrics",
        "/%76%31/models",
        "http://elsewhere/v1/models",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/docs/oauth2-redirect",
        "/metrics",
        "/load",
        "/version",
        "/",
        "*",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_no_spelling_of_a_path_gets_around_the_guard(locked: LiveServer, target: str, method: str) -> None:
    assert _raw_status(locked, target, method) in (400, 401)


def test_a_probe_with_a_slash_too_many_is_that_probe(locked: LiveServer) -> None:
    """It is answered in place, and opens nothing else."""
    assert [_raw_status(locked, target) for target in ("/health/", "//health", "//health//")] == [200, 200, 200]
    assert [_raw_status(locked, target) for target in ("//health/x", "//v1/models/", "/health//x/")] == [401, 401, 401]


def test_no_prefix_gets_around_the_guard(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",), root_path="/prefix")
    assert _raw_status(live, "/health") == 200
    targets = ("/prefix/v1/models", "/v1/models", "/prefixv1/models", "/prefix/health", "/prefix", "/pre", "/..")
    for target in targets:
        assert _raw_status(live, target) == 401
    headers = {"authorization": "Bearer one"}
    assert live.http.get("/v1/models", headers=headers).status_code == 200
    assert live.http.get("/openapi.json", headers=headers).json()["servers"] == [{"url": "/prefix"}]
    assert live.http.post("/v1/messages/x", json={}, headers=headers).json()["type"] == "error", "Anthropic's words"


@pytest.mark.parametrize("path", ["/health", "/health/decode", "/ready", "/ping", "/%68ealth"])
def test_probes_answer_without_a_key(locked: LiveServer, path: str) -> None:
    assert _raw_status(locked, path) == 200


def test_metrics_are_open_when_asked(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",), metrics_without_key=True)
    assert live.status("/metrics") == 200
    assert live.status("/v1/models") == 401


def test_every_route_of_the_app_is_guarded(locked: LiveServer) -> None:
    """Also those that are added later, unless they are named as open."""
    routes = locked.server._app._app.routes  # type: ignore[union-attr]
    paths = {route.path.replace("{name:path}", "x") for route in routes}
    opened = {path for path in paths if locked.http.get(path).status_code not in (401, 405)}
    assert opened == {"/health", "/health/decode", "/ready", "/ping", "/ui"}
    assert {"/v1/chat/completions", "/openapi.json", "/docs"} <= paths
    for path in paths - opened:
        assert locked.http.post(path, json={}).status_code == 401


def test_unauthorized_in_each_dialect(locked: LiveServer) -> None:
    openai = locked.http.post("/v1/chat/completions", json={}).json()
    assert openai["error"]["code"] == "invalid_api_key"
    anthropic = locked.http.post("/v1/messages", json={}).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
    ollama = locked.http.post("/api/chat", json={}).json()
    assert "API key" in ollama["error"]


def test_sighup_reads_the_file_again(
    start: Callable[..., Command],  # noqa: F811
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = start("--port", str(port), "--api-key-file", str(file))

    def status(key: str) -> int:
        try:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers).status_code
        except httpx.TransportError:
            return 0

    wait_until(lambda: status("old") == 200)
    file.write_text("new\n")
    os.kill(command.process.pid, signal.SIGHUP)
    wait_until(lambda: status("new") == 200)
    assert status("old") == 401
