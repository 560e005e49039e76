"""/api/embed and /api/embeddings. The fake engine's embedding is (last token, 100), brought to unit length."""

import math

import ollama
import pytest

from tests.api.live_server import MAX_MODEL_LEN, STOP, LiveServer, StartServer

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


def test_a_long_input_is_cut_unless_the_request_says_otherwise(client: ollama.Client) -> None:
    """mem0#5415: as Ollama, whose default it is."""
    text = "a" * 200 + "b" * 200
    with pytest.raises(ollama.ResponseError, match="maximum context length is 256 tokens") as raised:
        client.embed("tiny", text, truncate=False)
    assert raised.value.status_code == 400
    assert client.embeddings("tiny", text).embedding == embedding_of(A + 1)
    for truncate in (None, True):
        cut = client.embed("tiny", [text, "a" * 1_000_000], truncate=truncate)
        assert cut.embeddings == [embedding_of(A + 1), embedding_of(A)]
        assert cut.prompt_eval_count == 2 * MAX_MODEL_LEN  # nothing is generated: all of the context is the input's


@pytest.mark.parametrize("texts", [[""], ["", ""], ["a", ""], ["", "a", "", "xb"], [" "]])
def test_each_input_has_its_vector_in_order(client: ollama.Client, server: LiveServer, texts: list[str]) -> None:
    """ollama#14186: an empty text is one, which the token at the end of texts stands for here."""
    of_text = {"": embedding_of(STOP), "a": embedding_of(A), "xb": embedding_of(A + 1)}
    vectors = client.embed("tiny", texts).embeddings
    assert len(vectors) == len(texts)
    assert all(vector == of_text[text] for vector, text in zip(vectors, texts, strict=True) if text != " ")
    answer = server.http.post("/v1/embeddings", json={"input": texts}).json()
    assert [entry["embedding"] for entry in answer["data"]] == vectors


@pytest.mark.parametrize("texts", [["", ""], "", "a", ["a", "b"], [[5], [6, 7]], [5, 6]])
def test_openais_route_has_a_vector_for_each_input_too(server: LiveServer, texts: object) -> None:
    answer = server.http.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    count = 1 if isinstance(texts, str) or texts == [5, 6] else 2
    assert [entry["index"] for entry in answer.json()["data"]] == list(range(count))


@pytest.mark.parametrize("texts", [[], [[]], [[5], []], ["a"] * 1025])
def test_openais_route_names_an_input_that_is_none(server: LiveServer, texts: object) -> None:
    answer = server.http.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(("input", "body.input"))
    assert "input" in answer.json()["error"]["message"]


def test_refusals(client: ollama.Client, server: LiveServer) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'absent' not found") as raised:
        client.embed("absent", "a")
    assert raised.value.status_code == 404
    for body in ({"input": 3}, {"input": [3]}, {"input": "a", "options": {"num_ctx": "x"}}):
        response = server.http.post("/api/embed", json={"model": "tiny", **body})
        assert response.status_code == 400
        assert response.json()["error"]


def test_pooling_is_the_servers(start_server: StartServer) -> None:
    client = ollama.Client(start_server(pooling="mean").url)
    assert client.embed("tiny", "ab").embeddings == [embedding_of(A + A + 1)]
