"""Browsers: scripts of allowed sites may call and read, others may not."""

import pytest

from jserve.commands.options import parse
from jserve.errors import ConfigError
from tests.api.live_server import StartServer

_ORIGIN = {"origin": "https://app.example"}
_PREFLIGHT = {**_ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


def test_preflight_passes_without_a_key_and_errors_can_be_read(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",), allowed_origins=("https://app.example",))
    preflight = live.http.options("/v1/chat/completions", headers=_PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    refused = live.http.post("/v1/chat/completions", json={}, headers=_ORIGIN)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    answer = live.http.get("/v1/models", headers={**_ORIGIN, "x-api-key": "one"})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    other = {**_PREFLIGHT, "origin": "https://evil.example"}
    assert live.http.options("/v1/chat/completions", headers=other).status_code == 400
    assert "access-control-allow-origin" not in live.http.get("/health", headers={"origin": other["origin"]}).headers


def test_no_site_is_allowed_by_default(start_server: StartServer) -> None:
    live = start_server()
    assert "access-control-allow-origin" not in live.http.get("/v1/models", headers=_ORIGIN).headers
    assert live.http.options("/v1/models", headers=_PREFLIGHT).status_code == 405


def test_flags_take_names_or_a_json_list() -> None:
    for inputs in (["https://a", "https://b"], ['["https://a", "https://b"]']):
        settings = parse(["--model", "m", "--allowed-origins", *inputs, "--allow-credentials"])[1]
        assert settings.allowed_origins == ("https://a", "https://b")
        assert (settings.allowed_methods, settings.allowed_headers) == (("*",), ("*",))
        assert settings.allow_credentials
    with pytest.raises(ConfigError, match="--allow-credentials needs --allowed-origins by name"):
        parse(["--model", "m", "--allowed-origins", "*", "--allow-credentials"])
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--allowed-origins", "[1]"])
