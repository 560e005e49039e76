"""/api/embed and /api/embeddings. The fake engine's embedding is (last token, 100), brought to unit length."""

import math

import ollama
import pytest

from tests.api.live_server import MAX_MODEL_LEN, LiveServer, StartServer

A = 3 + sorted(map(chr, range(33, 127))).index("a")
"""The token of "a"."""


def embedding_of(token: int) -> list[float]:
    return pytest.approx([token / math.hypot(token, 100), 100 / math.hypot(token, 100)], abs=1e-6)


@pytest.fixture(scope="module")
def client(server: LiveServer) -> ollama.Client:
    return ollama.Client(server.url)


def test_one_input_or_many_in_order(client: ollama.Client) -> None:
    one = client.embed("tiny", "xa")
    assert one.embeddings == [embedding_of(A)]
    many = client.embed("tiny", ["a", "xb", "xxc"])
    assert many.embeddings == [embedding_of(A), embedding_of(A + 1), embedding_of(A + 2)]
    assert many.prompt_eval_count == 6
    assert many.total_duration
    assert many.load_duration
    assert many.load_duration <= many.total_duration
    assert many.model == "tiny"


def test_former_form_has_one_embedding(client: ollama.Client) -> None:
    assert client.embeddings("tiny", "xa").embedding == embedding_of(A)
    assert client.embeddings("tiny", "").embedding == []


def test_no_input_gives_no_embeddings(client: ollama.Client) -> None:
    assert client.embed("tiny", "").embeddings == []
    assert client.embed("tiny", []).embeddings == []


def test_dimensions_are_the_first_of_unit_length(client: ollama.Client) -> None:
    assert client.embed("tiny", "a", dimensions=1).embeddings == [[pytest.approx(1.0)]]
    assert client.embed("tiny", "a", dimensions=9).embeddings == [embedding_of(A)]
    with pytest.raises(ollama.ResponseError, match="dimensions"):
        client.embed("tiny", "a", dimensions=0)


def test_long_input_is_cut_only_where_the_request_says_so(client: ollama.Client) -> None:
    text = "a" * 200 + "b" * 200
    for truncate in (None, False):
        with pytest.raises(ollama.ResponseError, match="maximum context length is 256 tokens") as raised:
            client.embed("tiny", text, truncate=truncate)
        assert raised.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="maximum context length"):
        client.embeddings("tiny", text)
    cut = client.embed("tiny", [text, "a" * 1_000_000], truncate=True)
    assert cut.embeddings == [embedding_of(A + 1), embedding_of(A)]
    assert cut.prompt_eval_count == 2 * MAX_MODEL_LEN  # nothing is generated, so all of the context is the input's


def test_refusals(client: ollama.Client, server: LiveServer) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'absent' not found") as raised:
        client.embed("absent", "a")
    assert raised.value.status_code == 404
    for body in ({"input": 3}, {"input": [3]}, {"input": "a", "options": {"num_ctx": "x"}}, {"input": ["a", ""]}):
        response = server.http.post("/api/embed", json={"model": "tiny", **body})
        assert response.status_code == 400
        assert response.json()["error"]


def test_pooling_is_the_servers(start_server: StartServer) -> None:
    client = ollama.Client(start_server(pooling="mean").url)
    assert client.embed("tiny", "ab").embeddings == [embedding_of(A + A + 1)]
