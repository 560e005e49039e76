"""Weights or a precision that give NaN: whatever would show one is a 500 that says so, never null or NaN in a body."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.live_server import LiveServer, StartServer

NAN = 96
"""The token of "~"."""
SHOWN: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["a", "b~"]},
    "/api/embed": {"model": "tiny", "input": ["a", "b~"]},
    "/api/embeddings": {"model": "tiny", "prompt": "b~"},
    "/v1/completions": {"prompt": "b~", "logprobs": 1, "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "~"}], "logprobs": True},
    "/v1/responses": {"input": "~", "include": ["message.output_text.logprobs"], "top_logprobs": 1},
    "/api/chat": {"model": "tiny", "messages": [{"role": "user", "content": "~"}], "logprobs": True, "stream": False},
}


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--nan-token", str(NAN))
    yield live
    live.stop()


@pytest.mark.parametrize("path", SHOWN)
def test_a_number_that_is_not_finite_is_a_500_that_says_so(live: LiveServer, path: str) -> None:
    answer = live.http.post(path, json=SHOWN[path])
    assert answer.status_code == 500, answer.text
    assert "not finite (NaN or infinity)" in answer.text


def test_scores_of_such_embeddings_are_one_too(start_server: StartServer) -> None:
    live = start_server("--nan-token", str(NAN), score_method="cosine")
    answer = live.http.post("/v1/rerank", json={"query": "a", "documents": ["b", "c~"]})
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]


def test_neighbours_are_answered(live: LiveServer) -> None:
    answer = live.http.post("/v1/embeddings", json={"input": ["a", "b"]})
    assert answer.status_code == 200
    assert all(isinstance(value, float) for entry in answer.json()["data"] for value in entry["embedding"])
