"""A tokenizer with a token that the model has no row for: no prompt brings it in, and everything else works."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.api.live_server import LiveServer, StartServer

IMAGE = "<image>"
ROWS = 262
"""As many as the tokenizer has tokens but for the last."""
PROMPT = f"look: {IMAGE}"
MESSAGES = [{"role": "user", "content": PROMPT}]
IDS = [5, ROWS, 7]

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion of text": ("/v1/completions", {"prompt": PROMPT}),
    "completion of several texts": ("/v1/completions", {"prompt": ["fine", PROMPT]}),
    "completion of token ids": ("/v1/completions", {"prompt": IDS}),
    "completion that is scored": ("/v1/completions", {"prompt": PROMPT, "echo": True, "max_tokens": 0, "logprobs": 1}),
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "response": ("/v1/responses", {"input": PROMPT}),
    "Anthropic's message": ("/v1/messages", {"model": "tiny", "messages": MESSAGES, "max_tokens": 4}),
    "Ollama's chat": ("/api/chat", {"model": "tiny", "messages": MESSAGES}),
    "Ollama's prompt": ("/api/generate", {"model": "tiny", "prompt": PROMPT}),
    "Ollama's raw prompt": ("/api/generate", {"model": "tiny", "prompt": PROMPT, "raw": True}),
    "Ollama's context": ("/api/generate", {"model": "tiny", "prompt": "fine", "context": IDS}),
    "embedding of text": ("/v1/embeddings", {"input": PROMPT}),
    "embedding of token ids": ("/v1/embeddings", {"input": IDS}),
    "Ollama's embedding": ("/api/embed", {"model": "tiny", "input": PROMPT}),
    "Ollama's former embedding": ("/api/embeddings", {"model": "tiny", "prompt": PROMPT}),
    "score of labels": ("/v1/score", {"query": PROMPT, "items": ["a"], "label_token_ids": [5, 6]}),
    "score of labels by id": ("/v1/score", {"query": [5], "items": [IDS], "label_token_ids": [5, 6]}),
    "score": ("/v1/score", {"queries": PROMPT, "documents": "a"}),
    "ranking": ("/v1/rerank", {"query": "a", "documents": [PROMPT]}),
}


@pytest.fixture(scope="module")
def live(
    make_server: StartServer, model_dir: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("more-tokens") / "model"
    shutil.copytree(model_dir, folder)
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_special_tokens([AddedToken(IMAGE, special=True)])
    assert larger.token_to_id(IMAGE) == ROWS
    larger.save(str(folder / "tokenizer.json"))
    live = make_server("--vocab-size", str(ROWS), model=str(folder), max_model_len=1024)
    yield live
    live.stop()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
def test_prompt_with_a_token_without_a_row_is_refused_by_its_id(live: LiveServer, name: str, stream: bool) -> None:
    """vllm#46470"""
    path, body = REQUESTS[name]
    answer = live.http.post(path, json=body | ({"stream": True} if stream else {}))
    assert answer.status_code == 400, answer.text
    assert str(ROWS) in answer.text
    assert "out of vocabulary" in answer.text
    assert live.http.post("/v1/completions", json={"prompt": "fine", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "[ab]{3}"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"response_format": {"type": "json_object"}},
        {"bad_words": [IMAGE, f"a{IMAGE}"]},
        {"allowed_token_ids": [5, 6, 7]},
        {"logit_bias": {"5": 1.0}},
        {"logprobs": 5},
    ],
)
def test_all_that_names_tokens_works_beside_one_without_a_row(live: LiveServer, fields: dict[str, Any]) -> None:
    """vllm#33509"""
    answer = live.http.post("/v1/completions", json={"prompt": "fine", "max_tokens": 40, **fields})
    assert answer.status_code == 200, answer.text
    if "response_format" in fields:
        choice = answer.json()["choices"][0]
        assert choice["text"].startswith("{")
        if choice["finish_reason"] == "stop":  # Else `max_tokens` has cut it off.
            assert isinstance(json.loads(choice["text"]), dict)


@pytest.mark.parametrize(
    "fields", [{"allowed_token_ids": [ROWS]}, {"logit_bias": {str(ROWS): 1.0}}, {"stop_token_ids": [ROWS]}]
)
def test_parameter_with_a_token_without_a_row_is_refused_by_its_id(live: LiveServer, fields: dict[str, Any]) -> None:
    answer = live.http.post("/v1/completions", json={"prompt": "fine", **fields})
    assert answer.status_code == 400
    assert str(ROWS) in answer.json()["error"]["message"]


def test_tokens_without_a_row_are_still_the_tokenizers(live: LiveServer) -> None:
    tokens = live.http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    assert tokens[-1] == ROWS
    assert live.http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": PROMPT}
