"""Whichever endpoint a request comes to: its key pays, its prompts stay with that key, and its answer is readable."""

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


LINE_ENDS = "a\u2028b\u2029c\u0085d"
_TOLD = [{"role": "user", "content": LINE_ENDS}]
WITH_LINE_ENDS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": LINE_ENDS, "max_tokens": 32, "logprobs": 2, "echo": True},
    "/v1/chat/completions": {"messages": _TOLD, "max_tokens": 64, "logprobs": True},
    "/v1/responses": {"input": LINE_ENDS, "instructions": LINE_ENDS, "max_output_tokens": 64},
    "/v1/messages": {"model": "tiny", "messages": _TOLD, "max_tokens": 64},
    "/api/chat": {"model": "tiny", "messages": _TOLD, "options": {"num_predict": 64}},
    "/api/generate": {"model": "tiny", "prompt": LINE_ENDS, "options": {"num_predict": 64}},
}
ECHOING: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": LINE_ENDS, "return_token_strs": True},
    "/detokenize": {"tokens": [3 + byte for byte in range(253)]},
    "/v1/rerank": {"query": LINE_ENDS, "documents": [LINE_ENDS]},
    **{path: {**body, "model": LINE_ENDS} for path, body in GENERATING.items()},
    "/api/show": {"model": LINE_ENDS},
}


def _check_lines(content: bytes) -> None:
    text = content.decode()
    assert text.splitlines() == text.replace("\r\n", "\n").removesuffix("\n").split("\n"), "a string ends a line"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", WITH_LINE_ENDS)
def test_readers_of_lines_find_whole_events(live: LiveServer, path: str, stream: bool) -> None:
    """openai-python#1230, dify#39008: U+2028, U+2029 and U+0085 end a line for many readers."""
    body = {**WITH_LINE_ENDS[path], "stream": stream}
    answer = live.http.post(path, json=body, headers={"x-api-key": "one"})
    assert answer.status_code == 200, answer.text
    for escape in ("\\u2028", "\\u2029", "\\u0085"):
        assert escape in answer.text
    _check_lines(answer.content)


@pytest.mark.parametrize("path", ECHOING)
def test_what_a_client_wrote_comes_back_in_one_line(live: LiveServer, path: str) -> None:
    answer = live.http.post(path, json=ECHOING[path], headers={"x-api-key": "one"})
    assert b"u2028" in answer.content or "model" not in ECHOING[path]
    _check_lines(answer.content)


_EMOJI = [{"role": "user", "content": "\U0001f44d"}]
CUT: dict[str, tuple[dict[str, Any], str, int]] = {
    "/v1/completions": ({"prompt": "\U0001f44d"}, "max_tokens", 0),
    "/v1/chat/completions": ({"messages": _EMOJI}, "max_tokens", 6),
    "/v1/responses": ({"input": _EMOJI}, "max_output_tokens", 6),
    "/v1/messages": ({"model": "tiny", "messages": _EMOJI}, "max_tokens", 6),
    "/api/chat": ({"model": "tiny", "messages": _EMOJI}, "num_predict", 6),
    "/api/generate": ({"model": "tiny", "prompt": "\U0001f44d", "raw": True}, "num_predict", 0),
}
"""Requests whose answer is an emoji of four tokens, after so many others."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", CUT)
def test_an_answer_cut_in_mid_character_has_no_half_character(live: LiveServer, path: str, stream: bool) -> None:
    """imp#1310."""
    body, field, begin = CUT[path]
    for count in (1, 2, 3, 4):
        limit = {field: begin + count}
        limit = {"options": limit} if field == "num_predict" else limit
        answer = live.http.post(path, json={**body, **limit, "stream": stream}, headers={"x-api-key": "one"})
        assert answer.status_code == 200, answer.text
        assert "\ufffd" not in answer.text
        assert ("\U0001f44d" in answer.text) == (count == 4)


def test_the_fingerprint_does_not_follow_the_log() -> None:
    quiet, loud = (EngineConfig(model="m", log_level=level) for level in ("error", "debug"))
    assert fingerprint(quiet) == fingerprint(loud) != fingerprint(EngineConfig(model="m", seed=1))
