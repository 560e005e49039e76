"""/v1/embeddings; a fake embedding is (last token, 100) or (sum of the tokens, 100), of length 1."""

import base64
import math
import struct
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.api.live_server import MAX_MODEL_LEN, LiveServer, StartServer


def unit(first: float) -> list[float]:
    return pytest.approx([first / math.hypot(first, 100), 100 / math.hypot(first, 100)], rel=1e-6)  # type: ignore[return-value]


def post(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.http.post("/v1/embeddings", json=body)
    assert response.status_code == 400, response.text
    answer: dict[str, Any] = response.json()["error"]
    return answer


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openai_client_gets_a_vector_for_every_input(
    server: LiveServer, tokenizer: Tokenizer, encoding: str | None
) -> None:
    """Which asks for base64, and decodes it, unless the caller says otherwise."""
    fields: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    texts = ["abc", "x", "hello"]
    answer = server.openai.embeddings.create(model="tiny", input=texts, **fields)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    for text, entry in zip(texts, answer.data, strict=True):
        last = tokenizer.encode(text).ids[-1]
        vector: Any = entry.embedding
        if encoding == "base64":
            assert isinstance(vector, str)
            vector = list(struct.unpack("<2f", base64.b64decode(vector)))
        assert vector == unit(last)
    count = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)
    assert answer.model == "tiny"


def test_forms_of_input_agree(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc").ids
    for body in ({"input": "abc"}, {"input": ids}, {"input": ["abc"]}, {"input": [ids]}):
        [entry] = post(server, **body)["data"]
        assert entry["embedding"] == unit(ids[-1])
    text = "<|im_start|>user\nhi<|im_end|>\n"
    [entry] = post(server, messages=[{"role": "user", "content": "hi"}], pooling="mean")["data"]
    assert entry["embedding"] == unit(sum(tokenizer.encode(text).ids))


def test_pooling_is_the_servers_unless_the_request_says_otherwise(
    server: LiveServer, start_server: StartServer, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("abc").ids
    assert post(server, input="abc", pooling="mean")["data"][0]["embedding"] == unit(sum(ids))
    mean = start_server(pooling="mean")
    assert post(mean, input="abc")["data"][0]["embedding"] == unit(sum(ids))
    assert post(mean, input="abc", pooling="last")["data"][0]["embedding"] == unit(ids[-1])


def test_input_may_fill_the_context_and_is_cut_on_request_only(server: LiveServer, tokenizer: Tokenizer) -> None:
    assert post(server, input="x" * MAX_MODEL_LEN)["usage"]["prompt_tokens"] == MAX_MODEL_LEN
    assert "maximum context length is 256" in refused(server, input="x" * (MAX_MODEL_LEN + 1))["message"]
    assert post(server, input="x" * 999, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == MAX_MODEL_LEN
    ids = tokenizer.encode("abcd").ids
    cut = post(server, input="abcd", truncate_prompt_tokens=2, pooling="mean")
    assert cut["data"][0]["embedding"] == unit(sum(ids[2:]))
    cut = post(server, input="abcd", truncate_prompt_tokens=2, truncation_side="right", pooling="mean")
    assert cut["data"][0]["embedding"] == unit(sum(ids[:2]))


def test_dimensions_must_be_the_models(server: LiveServer) -> None:
    assert len(post(server, input="a", dimensions=2)["data"][0]["embedding"]) == 2
    error = refused(server, input="a", dimensions=1)
    assert error["param"] == "dimensions"
    assert "embeddings have 2 dimensions" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[5], []]}, "input"),
        ({"input": [5, 999]}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input"),
        ({"input": "a", "encoding_format": "bytes"}, "body.encoding_format"),
        ({"input": "a", "pooling": "max"}, "body.pooling"),
        ({"input": "a", "prompt_name": "query"}, "prompt_name"),
        ({"input": "a", "embed_dtype": "float16"}, "body.embed_dtype"),
        ({"input": "a", "normalize": False}, "body.normalize"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(server: LiveServer, body: dict[str, Any], param: str) -> None:
    assert refused(server, **body)["param"] == param


def test_unknown_model_is_not_found(server: LiveServer) -> None:
    assert server.http.post("/v1/embeddings", json={"input": "a", "model": "gpt"}).status_code == 404
