"""What makes a model one that gives labels, or scores a pair of texts: from its configuration.

A model with one label is a cross-encoder: it reads a query and a document as one, and its only number says how well
they match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jserve.checkpoint.embedder import CLASSIFIES
from jserve.errors import CheckpointError
from jserve.protocol import Pooling

Activation = Literal["identity", "sigmoid", "softmax", "tanh"]
_PROBLEMS: dict[str, Activation] = {"regression": "identity", "multi_label_classification": "sigmoid"}
"""`problem_type` of transformers, as vLLM reads it."""
_FUNCTIONS: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}
"""Classes of torch that sentence-transformers names for a cross-encoder's scores."""
MOST_LABELS = 100_000


@dataclass(frozen=True, slots=True)
class Classifier:
    """How texts are given labels. `activation` is what makes probabilities of logits, where a request does not say."""

    labels: tuple[str, ...]
    pooling: Pooling
    activation: Activation

    @property
    def is_cross_encoder(self) -> bool:
        return len(self.labels) == 1

    @classmethod
    def of(cls, config: Mapping[str, Any], *, source: Path | str) -> Classifier | None:
        """From a checkpoint's configuration; None for any other model. Raises CheckpointError where it is damaged."""
        names = config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        if not name.endswith(CLASSIFIES):
            return None
        labels = _labels(config, source)
        return cls(labels, _pooling(config, name, source), _activation(config, len(labels), source))


def _labels(config: Mapping[str, Any], source: Path | str) -> tuple[str, ...]:
    """Names by their number. Two where the file is silent, as in transformers."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 0 < count <= MOST_LABELS:
            raise CheckpointError(f"{source}: num_labels is {count!r} but must be a number from 1 to {MOST_LABELS:,}")
        return tuple(f"LABEL_{number}" for number in range(count))
    wanted = list(map(str, range(len(named)))) if isinstance(named, Mapping) else []
    if not wanted or not isinstance(named, Mapping) or not all(isinstance(named.get(key), str) for key in wanted):
        raise CheckpointError(f"{source}: id2label must name a label for each number from 0 on")
    return tuple(named[key] for key in wanted)


def _pooling(config: Mapping[str, Any], name: str, source: Path | str) -> Pooling:
    if "Bert" not in name and "Roberta" not in name and not name.startswith(("Gte", "Jina")):
        return "last"
    stated = config.get("classifier_pooling") or "cls"
    if stated not in ("cls", "mean"):
        raise CheckpointError(f"{source}: classifier_pooling is {stated!r}; supported are cls and mean")
    return "mean" if stated == "mean" else "cls"


def _activation(config: Mapping[str, Any], count: int, source: Path | str) -> Activation:
    """In vLLM's order: what the model was trained as, what sentence-transformers says, what the labels suggest."""
    problem = config.get("problem_type")
    if problem in _PROBLEMS:
        return _PROBLEMS[problem]
    own = config.get("sentence_transformers")
    function = own.get("activation_fn") if isinstance(own, Mapping) else None
    function = function or config.get("sbert_ce_default_activation_function")
    if function is None or problem == "single_label_classification":
        return "sigmoid" if count == 1 else "softmax"
    short = str(function).rpartition(".")[2]
    if short not in _FUNCTIONS:
        raise CheckpointError(
            f"{source}: scores go through {function!r}, which is not supported; supported are {', '.join(_FUNCTIONS)}"
        )
    return _FUNCTIONS[short]
