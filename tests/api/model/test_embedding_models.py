"""A server of a model for embeddings, in front of a fake engine: what its files say reaches every request.

A fake embedding is (sum of the tokens, 100) or (last token, 100), of length 1.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.api.live_server import LiveServer, StartServer
from tests.checkpoint.embedder_maker import add_embedder_files

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
CLS, SEP = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")
LIMIT = 12


def ids(text: str) -> list[int]:
    """The token ids of letters with spaces between."""
    return [CLS, *(TOKENS.index(token) for token in text.lower().split()), SEP]


def mean_of(tokens: list[int]) -> list[float]:
    length = math.hypot(sum(tokens), 100)
    return pytest.approx([sum(tokens) / length, 100 / length], rel=1e-6)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT model with a list of tokens as its tokenizer."""
    made = tmp_path_factory.mktemp("bert")
    (made / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    (made / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    save_file({"x": np.zeros((4, 4), np.float32)}, made / "model.safetensors")
    prompts = {"prompts": {"query": "q : ", "document": ""}, "default_prompt_name": None}
    return add_embedder_files(made, {"pooling_mode_mean_tokens": True}, config_sentence_transformers=prompts)


@pytest.fixture(scope="module")
def server(make_server: StartServer, folder: Path) -> Iterator[LiveServer]:
    live = make_server(model=str(folder), max_model_len=LIMIT)
    yield live
    live.stop()


def embed(server: LiveServer, **body: Any) -> list[list[float]]:
    response = server.http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    return [entry["embedding"] for entry in response.json()["data"]]


def test_pooling_and_special_tokens_are_the_models(server: LiveServer) -> None:
    assert embed(server, input=["a b", "C"]) == [mean_of(ids("a b")), mean_of(ids("c"))]
    assert embed(server, input="a b", add_special_tokens=False) == [mean_of(ids("a b")[1:-1])]
    assert embed(server, input=[7, 8]) == [mean_of([7, 8])]
    assert embed(server, input="a", pooling="last") == [mean_of([SEP])]


def test_prompt_goes_before_a_text_by_its_name(server: LiveServer) -> None:
    assert embed(server, input="a b", prompt_name="query") == [mean_of(ids("q : a b"))]
    assert embed(server, input="a b", prompt_name="document") == [mean_of(ids("a b"))]
    response = server.http.post("/v1/embeddings", json={"input": "a", "prompt_name": "title"})
    assert response.status_code == 400
    assert "it has: query, document" in response.json()["error"]["message"]


def test_default_prompt_and_lower_case_are_the_models(start_server: StartServer, folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    prompts = {"prompts": {"document": "D : "}, "default_prompt_name": "document"}
    add_embedder_files(
        tmp_path,
        {"pooling_mode_lasttoken": True},
        config_sentence_transformers=prompts,
        sentence_bert_config={"do_lower_case": True},
    )
    live = start_server(model=str(tmp_path))
    assert embed(live, input="A b", pooling="mean") == [mean_of(ids("d : a b"))]
    assert embed(live, input="a b") == [mean_of([SEP])]


def test_text_that_is_cut_keeps_its_beginning_between_the_special_tokens(server: LiveServer) -> None:
    text, cut = "a " * 20, "a " * (LIMIT - 2)
    response = server.http.post("/v1/embeddings", json={"input": text})
    assert response.status_code == 400
    assert f"maximum context length is {LIMIT} tokens" in response.json()["error"]["message"]
    assert embed(server, input=text, truncate_prompt_tokens=-1) == [mean_of(ids(cut))]
    assert embed(server, input="a b c", truncate_prompt_tokens=4) == [mean_of(ids("a b"))]
    assert embed(server, input="a b c", truncate_prompt_tokens=4, truncation_side="left") == [mean_of(ids("b c"))]
    assert embed(server, input="a b c", truncate_prompt_tokens=2) == [mean_of([CLS, TOKENS.index("a")])]
    assert embed(server, input=text * 50_000, truncate_prompt_tokens=-1) == [mean_of(ids(cut))]


def test_white_space_is_no_part_of_the_length(server: LiveServer) -> None:
    """Neither is that of an unknown word, which is one token."""
    spaces = " " * 300_000
    assert embed(server, input=f"a{spaces}b") == [mean_of(ids("a b"))]
    assert embed(server, input="x" * 300_000) == [mean_of([CLS, TOKENS.index("[UNK]"), SEP])]
    response = server.http.post("/v1/embeddings", json={"input": "a " * 200_000})
    assert response.status_code == 400
    assert "maximum context length" in response.json()["error"]["message"]


def test_ollama_cuts_unless_it_is_told_not_to(server: LiveServer) -> None:
    text, cut = "a " * 20, mean_of(ids("a " * (LIMIT - 2)))
    assert server.http.post("/api/embed", json={"model": "tiny", "input": text}).json()["embeddings"] == [cut]
    assert server.http.post("/api/embeddings", json={"model": "tiny", "prompt": text}).json()["embedding"] == cut
    refused = server.http.post("/api/embed", json={"model": "tiny", "input": text, "truncate": False})
    assert refused.status_code == 400
    assert f"{LIMIT} tokens" in refused.json()["error"]


def test_dimensions_are_the_first_of_unit_length(server: LiveServer) -> None:
    assert embed(server, input="a", dimensions=1) == [[pytest.approx(1.0)]]
    assert embed(server, input="a", dimensions=2) == [mean_of(ids("a"))]
    for dimensions in (0, 3):
        response = server.http.post("/v1/embeddings", json={"input": "a", "dimensions": dimensions})
        assert response.status_code == 400
        assert "ask for 1 to 2" in response.json()["error"]["message"]


TALK = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": TALK}),
        ("/v1/chat/completions", {"messages": TALK, "stream": True}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/responses/input_tokens", {"input": "a"}),
        ("/v1/messages", {"messages": TALK, "max_tokens": 1, "model": "tiny"}),
        ("/v1/messages/count_tokens", {"messages": TALK, "model": "tiny"}),
        ("/api/chat", {"model": "tiny", "messages": TALK}),
        ("/api/generate", {"model": "tiny", "prompt": "a"}),
        ("/api/generate", {"model": "tiny", "prompt": "a", "raw": True}),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [5]}),
    ],
)
def test_text_is_refused_in_the_words_of_the_route(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    message = error if path.startswith("/api") else error["message"]
    assert 'the model "tiny" embeds; it does not generate text. Send texts to v1/embeddings' in message
    assert (response.json().get("type") == "error") == path.startswith("/v1/messages")


def test_scores_are_cosines_without_a_flag(server: LiveServer) -> None:
    answer = server.http.post("/v1/score", json={"text_1": "a", "text_2": ["a", "z"]}).json()
    same, other = (entry["score"] for entry in answer["data"])
    assert same == pytest.approx(1.0)
    assert other < 1.0


def test_information_says_that_it_embeds(server: LiveServer) -> None:
    assert server.http.post("/api/show", json={"model": "tiny"}).json()["capabilities"] == ["embedding"]
    assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == LIMIT
    for path in ("/health", "/ready", "/health/decode", "/metrics", "/api/tags", "/api/ps", "/tokenizer_info"):
        assert server.http.get(path).status_code == 200
    tokens = server.http.post("/tokenize", json={"prompt": "a b"}).json()["tokens"]
    assert tokens == ids("a b")
    assert server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "[CLS] a b [SEP]"
