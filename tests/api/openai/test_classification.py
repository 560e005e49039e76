"""/classify, and cross-encoders. A fake engine's logits: (sum of tokens / 100 + place of the second text / 10, 0)."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.api.live_server import LiveServer, StartServer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
CLS, SEP = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")
LIMIT = 16


def bert(folder: Path, **config: Any) -> Path:
    """A folder of a classifier with a list of tokens as its tokenizer."""
    folder.mkdir(exist_ok=True)
    fields = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", **config}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    save_file({"x": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    return folder


def ids(*texts: str) -> list[int]:
    """The token ids of letters with spaces between, of one text or of two as one."""
    return [CLS, *(token for text in texts for token in (*map(TOKENS.index, text.split()), SEP))]


def logit(*texts: str) -> float:
    return sum(ids(*texts)) / 100 + (len(ids(texts[0])) / 10 if len(texts) > 1 else 0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def post(live: LiveServer, path: str, **body: Any) -> Any:
    response = live.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def cross(make_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = bert(tmp_path_factory.mktemp("cross"), id2label={"0": "LABEL_0"})
    live = make_server("--embedding-size", "1", model=str(folder), max_model_len=LIMIT)
    yield live
    live.stop()


@pytest.fixture(scope="module")
def moods(make_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = bert(tmp_path_factory.mktemp("moods"), id2label={"0": "good", "1": "bad"})
    live = make_server(model=str(folder), max_model_len=LIMIT)
    yield live
    live.stop()


def test_labels_have_probabilities_or_logits(moods: LiveServer) -> None:
    answer = post(moods, "/classify", input=["a b", "c"])
    assert (answer["object"], answer["model"], answer["id"].partition("-")[0]) == ("list", "tiny", "classify")
    assert answer["usage"]["prompt_tokens"] == len(ids("a b")) + len(ids("c"))
    for index, (entry, text) in enumerate(zip(answer["data"], ("a b", "c"), strict=True)):
        good = sigmoid(logit(text))
        assert (entry["index"], entry["label"], entry["num_classes"]) == (index, "good", 2)
        assert entry["probs"] == pytest.approx([good, 1 - good])
    for name in ("use_activation", "activation", "softmax"):
        [entry] = post(moods, "/classify", input="a b", **{name: False})["data"]
        assert entry["probs"] == pytest.approx([logit("a b"), 0.0])
    [cut] = post(moods, "/classify", input="a " * 40, truncate_prompt_tokens=5, use_activation=False)["data"]
    assert cut["probs"] == pytest.approx([logit("a a a"), 0.0])


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_a_pair_is_one_text_and_its_score_a_sigmoid(cross: LiveServer, path: str) -> None:
    answer = post(cross, path, text_1="a b", text_2=["c", "d e"])
    expected = [sigmoid(logit("a b", "c")), sigmoid(logit("a b", "d e"))]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected)
    assert answer["usage"]["prompt_tokens"] == len(ids("a b", "c")) + len(ids("a b", "d e"))


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_back_the_most_relevant_first(cross: LiveServer, path: str) -> None:
    answer = post(cross, path, query="a", documents=["b", "z", {"text": "k"}], top_n=2)
    assert [entry["index"] for entry in answer["results"]] == [1, 2]
    expected = [sigmoid(logit("a", "z")), sigmoid(logit("a", "k"))]
    assert [entry["relevance_score"] for entry in answer["results"]] == pytest.approx(expected)


def test_a_document_that_is_cut_leaves_the_query_whole(cross: LiveServer) -> None:
    long = "z " * 400
    refused = cross.http.post("/v1/score", json={"text_1": "a b", "text_2": long})
    assert refused.status_code == 400
    assert f"maximum context length is {LIMIT} tokens" in refused.json()["error"]["message"]
    kept = "z " * (LIMIT - len(ids("a b", "")))
    [entry] = post(cross, "/v1/score", text_1="a b", text_2=long, truncate_prompt_tokens=-1)["data"]
    assert entry["score"] == pytest.approx(sigmoid(logit("a b", kept)))
    [entry] = post(cross, "/v1/score", text_1="a b", text_2="z z z", truncate_prompt_tokens=7)["data"]
    assert entry["score"] == pytest.approx(sigmoid(logit("a b", "z z")))


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": "a"}, "makes no embeddings"),
        ("/v1/completions", {"prompt": "a"}, "does not generate text. Send texts to /classify"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "does not generate text"),
        ("/v1/score", {"text_1": "a", "text_2": "b"}, "one of 2 labels"),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}, "one of 2 labels"),
        ("/classify", {}, "either `input` or `messages`"),
        ("/classify", {"input": "a", "messages": [{"role": "user", "content": "a"}]}, "either `input` or `messages`"),
        ("/classify", {"input": "a " * 20}, "maximum context length"),
        ("/classify", {"input": [999]}, "999"),
    ],
)
def test_what_a_classifier_cannot_do_is_said(moods: LiveServer, path: str, body: dict[str, Any], words: str) -> None:
    response = moods.http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_other_models_have_no_labels(server: LiveServer) -> None:
    response = server.http.post("/classify", json={"input": "a"})
    assert response.status_code == 400
    assert "has no head for labels" in response.json()["error"]["message"]


def test_a_template_of_queries_and_documents_words_the_pair(start_server: StartServer, tokenizer: Any) -> None:
    """As sentence-transformers' rerankers have it: one message for each."""
    template = (
        "{% set query = messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first %}"
        "{% set document = messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first %}"
        "{{ messages[0].content if messages[0].role == 'system' else 'find' }}: {{ query }} in {{ document }}"
    )
    live = start_server(chat_template=template)
    for fields, word in (({}, "find"), ({"instruction": "seek"}, "seek")):
        answer = post(live, "/v1/score", text_1="a", text_2="b", **fields)
        assert answer["usage"]["prompt_tokens"] == len(tokenizer.encode(f"{word}: a in b").ids)
