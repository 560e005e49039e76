"""Whichever endpoint a request comes to, its key pays for it and its prompts stay with that key."""

from collections.abc import Iterator
from typing import Any

import pytest

from jserve.api.access.account import Account
from jserve.api.access.limits import Limit, Limits
from jserve.api.model.served_model import fingerprint
from jserve.config import EngineConfig
from jserve.protocol import Request
from tests.api.live_server import LiveServer, StartServer

_MESSAGES = [{"role": "user", "content": "hello there"}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello there", "max_tokens": 8},
    "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 8},
    "/v1/responses": {"input": "hello there", "max_output_tokens": 8},
    "/v1/messages": {"model": "tiny", "messages": _MESSAGES, "max_tokens": 8},
    "/api/chat": {"model": "tiny", "messages": _MESSAGES, "options": {"num_predict": 8}},
    "/api/generate": {"model": "tiny", "prompt": "hello there", "options": {"num_predict": 8}},
}


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server(
        api_keys=("one", "two"), limits=Limits(Limit(tokens_per_minute=100_000, requests_per_minute=999))
    )
    yield live
    live.stop()


@pytest.fixture
def sent(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What reaches the engine."""
    requests: list[Request] = []
    client = live.server.context.client
    submit = client.submit

    def spy(batch: list[Request]) -> Any:
        requests.extend(batch)
        return submit(batch)

    monkeypatch.setattr(client, "submit", spy)
    return requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATING)
def test_the_key_pays_and_its_cache_is_its_own(
    live: LiveServer, sent: list[Request], monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Account, "reserve", lambda self, count: spent.append(count))
    monkeypatch.setattr(Account, "spend", lambda self, count: spent.append(count))
    for key in ("one", "two", "two"):
        headers = {"x-api-key": key, "x-request-id": f"mine-{key}"}
        answer = live.http.post(path, json={**GENERATING[path], "stream": stream}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"] == f"mine-{key}"
        assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
    assert sum(spent) == sum(len(request.token_ids) + 8 for request in sent)
    salts = [request.cache_salt for request in sent]
    assert len(salts) == 3
    assert salts[0] != salts[1] == salts[2] != ""
    assert all("mine-" in request.request_id for request in sent)


def test_the_fingerprint_does_not_follow_the_log() -> None:
    quiet, loud = (EngineConfig(model="m", log_level=level) for level in ("error", "debug"))
    assert fingerprint(quiet) == fingerprint(loud) != fingerprint(EngineConfig(model="m", seed=1))
