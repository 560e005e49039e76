"""API keys, request ids, and the probes that need neither."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.api.live_server import LiveServer, StartServer


@pytest.fixture(scope="module")
def locked(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server(api_keys=("one", "two"))
    yield live
    live.stop()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer three"},
        {"authorization": "Basic one"},
        {"x-api-key": ""},
        {"x-api-key": "on"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/metrics", "/version", "/v1/nothing"])
def test_without_a_key_only_probes_answer(locked: LiveServer, path: str, headers: dict[str, str]) -> None:
    response = locked.http.get(path, headers=headers)
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert locked.http.post("/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/decode", "/ready", "/ping"])
def test_probes_need_no_key(locked: LiveServer, path: str) -> None:
    assert locked.status(path) == 200


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer one"}, {"authorization": "bearer two"}, {"x-api-key": "two"}]
)
def test_every_key_opens(locked: LiveServer, headers: dict[str, str]) -> None:
    assert locked.http.get("/v1/models", headers=headers).status_code == 200
    assert locked.openai.models.list().data[0].id == "tiny"


def test_request_id_is_echoed_or_made(server: LiveServer) -> None:
    assert server.http.get("/health", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    made = {server.http.get("/health").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2


def test_models_by_every_name(server: LiveServer) -> None:
    models = server.openai.models.list().data
    assert [model.id for model in models] == ["tiny", "other"]
    card = server.http.get("/v1/models/other").json()
    assert card["max_model_len"] == 256
    assert server.openai.models.retrieve("tiny").id == "tiny"
    absent = server.http.get("/v1/models/a/b")
    assert absent.status_code == 404
    assert absent.json()["error"]["type"] == "NotFoundError"


def test_version(server: LiveServer) -> None:
    assert server.http.get("/version").json().keys() == {"version"}


def test_two_requests_with_one_id_both_get_answers(server: LiveServer) -> None:
    async def twice() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url) as client:
            body = {"prompt": "abc", "max_tokens": 200, "request_id": "same"}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(5)))

    for response in asyncio.run(twice()):
        assert response.json()["usage"]["completion_tokens"] == 200
