"""What a configuration says of a classifier."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jserve.checkpoint import Classifier, open_checkpoint
from jserve.errors import CheckpointError

TORCH = "torch.nn.modules.activation"


def classifier(name: str = "Bert", **config: Any) -> Classifier | None:
    return Classifier.of({"architectures": [f"{name}ForSequenceClassification"], **config}, source="config.json")


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 1}, ("LABEL_0",)),
        ({"id2label": {"1": "bad", "0": "good"}}, ("good", "bad")),
    ],
)
def test_labels_are_named_by_their_numbers(config: dict[str, Any], labels: tuple[str, ...]) -> None:
    actual = classifier(**config)
    assert actual is not None
    assert actual.labels == labels
    assert actual.is_cross_encoder == (len(labels) == 1)


@pytest.mark.parametrize(
    ("name", "config", "pooling"),
    [
        ("Bert", {}, "cls"),
        ("XLMRoberta", {}, "cls"),
        ("Gte", {}, "cls"),
        ("ModernBert", {"classifier_pooling": "mean"}, "mean"),
        ("Qwen3", {}, "last"),
    ],
)
def test_pooling_is_that_of_the_family(name: str, config: dict[str, Any], pooling: str) -> None:
    actual = classifier(name, **config)
    assert actual is not None
    assert actual.pooling == pooling


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "identity"),
        ({"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"num_labels": 1, "sentence_transformers": {"activation_fn": f"{TORCH}.Tanh"}}, "tanh"),
    ],
)
def test_activation_is_what_vllm_takes(config: dict[str, Any], activation: str) -> None:
    actual = classifier(**config)
    assert actual is not None
    assert actual.activation == activation


def test_activation_of_sentence_transformers_own_file_counts(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(own))
    with closing(open_checkpoint(tmp_path, needs_weights=False)) as checkpoint:
        actual = Classifier.of(checkpoint.config(), source=tmp_path)
    assert actual is not None
    assert actual.activation == "identity"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": "2"}, "num_labels is '2'"),
        ({"id2label": {"1": "x"}}, "id2label must name"),
        ({"id2label": {}}, "id2label must name"),
        ({"classifier_pooling": "late"}, "classifier_pooling is 'late'"),
        ({"sentence_transformers": {"activation_fn": f"{TORCH}.ELU"}}, "is not supported; supported are"),
    ],
)
def test_what_is_damaged_or_unknown_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        classifier(**config)


def test_other_models_have_none() -> None:
    assert Classifier.of({"architectures": ["BertModel"]}, source="config.json") is None
    assert Classifier.of({}, source="config.json") is None
