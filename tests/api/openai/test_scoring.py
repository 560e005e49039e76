"""/v1/score and /v1/rerank. The fake engine gives token t the logprob -t / 10, a text the vector (last token, 100)."""

import math
from typing import Any

import pytest
from tokenizers import Tokenizer

from jserve.protocol import Request
from tests.api.live_server import LiveServer, StartServer


def post(server: LiveServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture(scope="module")
def generative(make_server: StartServer) -> Any:
    """Whose template leaves the system message out: the tiny context has room for little."""
    live = make_server(chat_template="{{ messages[-1].content }}")
    yield live
    live.stop()


@pytest.fixture(scope="module")
def cosine(make_server: StartServer) -> Any:
    live = make_server(score_method="cosine")
    yield live
    live.stop()


def similarity(tokenizer: Tokenizer, first: str, second: str) -> float:
    one, other = (tokenizer.encode(text).ids[-1] for text in (first, second))
    return (one * other + 100 * 100) / (math.hypot(one, 100) * math.hypot(other, 100))


@pytest.mark.parametrize(
    "fields",
    [
        {"queries": "a", "documents": ["b", "c"]},
        {"text_1": "a", "text_2": ["b", "c"]},
        {"data_1": "a", "data_2": ["b", "c"]},
        {"query": "a", "items": ["b", "c"]},
        {"queries": ["a"], "documents": ["b", "c"]},
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_generative_score_is_the_probability_of_yes_against_no(
    generative: LiveServer, tokenizer: Tokenizer, path: str, fields: dict[str, Any]
) -> None:
    answer = post(generative, path, **fields, instruction="find")
    yes, no = (tokenizer.encode(answer).ids[0] for answer in ("yes", "no"))
    expected = math.exp(-yes / 10) / (math.exp(-yes / 10) + math.exp(-no / 10))
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([expected] * 2)
    prompts = [f"<Instruct>: find\n<Query>: a\n<Document>: {document}" for document in "bc"]
    assert answer["usage"]["prompt_tokens"] == sum(len(tokenizer.encode(prompt).ids) for prompt in prompts)
    assert (answer["object"], answer["model"]) == ("list", "tiny")


def test_cosine_score_is_that_of_the_embeddings(cosine: LiveServer, tokenizer: Tokenizer) -> None:
    answer = post(cosine, "/v1/score", queries=["a", "zz"], documents=["b", "c"])
    expected = [similarity(tokenizer, "a", "b"), similarity(tokenizer, "z", "c")]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, rel=1e-5)
    assert post(cosine, "/v1/score", queries="q", documents="q")["data"][0]["score"] == pytest.approx(1.0)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_back_the_most_relevant_first(cosine: LiveServer, tokenizer: Tokenizer, path: str) -> None:
    documents = ["z", "a", {"text": "k"}]
    answer = post(cosine, path, query="a", documents=documents, top_n=2)
    assert [entry["index"] for entry in answer["results"]] == [1, 2]
    assert [entry["document"] for entry in answer["results"]] == [{"text": "a"}, {"text": "k"}]
    scores = [entry["relevance_score"] for entry in answer["results"]]
    assert scores == pytest.approx([1.0, similarity(tokenizer, "a", "k")], rel=1e-5)
    bare = post(cosine, path, query="a", documents=documents, return_documents=False)
    assert [entry.keys() for entry in bare["results"]] == [{"index", "relevance_score"}] * 3


def test_probabilities_of_labels_in_the_form_of_sglang(server: LiveServer) -> None:
    fields = {"query": "ab", "items": ["c", "d"], "label_token_ids": [10, 20]}
    answer = post(server, "/v1/score", **fields)
    assert answer["object"] == "scoring"
    assert answer["scores"] == [pytest.approx([math.exp(-1.0), math.exp(-2.0)])] * 2
    shares = post(server, "/v1/score", **fields, apply_softmax=True)["scores"]
    assert shares == [pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])] * 2
    assert post(server, "/v1/score", **fields | {"query": [5, 6], "items": [[7]]})["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {}, "queries"),
        ("/v1/score", {"queries": "a"}, "documents"),
        ("/v1/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "documents"),
        ("/v1/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [999]}, "label_token_ids"),
        ("/v1/score", {"query": "a", "items": [[5]], "label_token_ids": [9]}, "items"),
        ("/v1/score", {"queries": "a", "documents": "b" * 300}, "input_tokens"),
        ("/v1/rerank", {"query": "a", "documents": []}, "body.documents"),
        ("/v1/rerank", {"documents": ["a"]}, "body.query"),
    ],
)
def test_what_is_wrong_is_named(server: LiveServer, path: str, body: dict[str, Any], param: str) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_template_that_refuses_a_system_message_is_asked_without_one(start_server: StartServer) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    live = start_server(chat_template=template)
    answer = post(live, "/v1/score", queries="a", documents="b", instruction="x")
    assert answer["usage"]["prompt_tokens"] > 150, "the instructions are in the user's message"


QWEN3 = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
"""What Qwen3-Reranker's chat template does with such messages."""
PREFIX = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_prompt_is_word_for_word_that_of_qwen3_rerankers_model_card(
    start_server: StartServer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_server(chat_template=QWEN3, max_model_len=1024)
    sent: list[list[int]] = []
    client = live.server.context.client
    submit = client.submit

    def spy(batch: list[Request]) -> Any:
        sent.extend(each.token_ids for each in batch)
        return submit(batch)

    monkeypatch.setattr(client, "submit", spy)
    post(live, "/v1/rerank", query="who?", documents=["me", "you"])
    instruct = "Given a web search query, retrieve relevant passages that answer the query"
    for tokens, document in zip(sent, ("me", "you"), strict=True):
        words = f"{PREFIX}<Instruct>: {instruct}\n<Query>: who?\n<Document>: {document}{SUFFIX}"
        assert tokens == tokenizer.encode(words).ids
