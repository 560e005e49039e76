"""Encoders in GGUF files are the models of their Hugging Face folders."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from jserve.checkpoint import Classifier, Embedder, open_checkpoint
from jserve.errors import CheckpointError
from jserve.models.registry import resolve_encoder
from tests.checkpoint.gguf.encoders_maker import ENCODERS, LEFT_OUT, write_encoder
from tests.worlds import make_model

OTHER = {"architecture", "dtype", "bos_token_id", "eos_token_ids", "position_offset", "tie_word_embeddings", "rope"}
"""Fields that a file says in another way, or that say nothing of an encoder."""


def plain(name: str) -> str:
    for prefix in ("roberta.", "model."):
        name = name.removeprefix(prefix)
    return name


@pytest.mark.parametrize("case", ENCODERS)
def test_shape_and_weights_are_those_of_the_folder(case: str, tmp_path: Path) -> None:
    architecture, fields = ENCODERS[case]
    folder = make_model(tmp_path / "hf", architecture, **{"max_position_embeddings": 40, **fields})
    path = write_encoder(tmp_path / "m.gguf", case, folder)
    with closing(open_checkpoint(path)) as actual, closing(open_checkpoint(folder)) as original:
        _, config = resolve_encoder(actual.config(), source=path) or pytest.fail("no encoder")
        _, expected = resolve_encoder(original.config(), source=folder) or pytest.fail("no encoder")
        for name in config.__dataclass_fields__.keys() - OTHER:
            assert getattr(config, name) == getattr(expected, name), name
        assert config.position_offset == 0
        names = {plain(name): name for name in original.tensors() if not any(part in name for part in LEFT_OUT)}
        assert {plain(name) for name in actual.tensors()} == set(names)
        for name in actual.tensors():
            rows = slice(expected.position_offset if "position_embeddings" in name else 0, None)
            np.testing.assert_allclose(actual.read(name), original.read(names[plain(name)])[rows], atol=1e-6)
        ranks = architecture.endswith("ForSequenceClassification")
        assert Embedder.of(actual.config(), source=path) == (None if ranks else Embedder("mean"))
        classifier, own = (Classifier.of(each.config(), source=path) for each in (actual, original))
        assert classifier == own


def test_scores_without_the_first_part_of_the_head_are_refused(tmp_path: Path) -> None:
    """llama.cpp's converter leaves BERT's pooler out."""
    folder = make_model(tmp_path / "hf", "BertForSequenceClassification", num_labels=1)
    path = write_encoder(tmp_path / "m.gguf", "bert", folder)
    with pytest.raises(CheckpointError, match=r"has no cls\.weight, without which"):
        open_checkpoint(path)
