"""An output projection that was trained is served, whatever `tie_word_embeddings` says."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.models.registry import resolve
from jserve.runtime.load_model import convert
from jserve.weights.tied_head import with_trained_head
from tests.text.tokenizers.tokenizer_maker import train_byte_level
from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of

PROMPT = [3, 17, 40, 9]


def say_tied(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def test_trained_head_beside_a_flag_that_ties_it_is_served(
    tmp_path: Path, executables: str, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers#42612"""
    folder = make_model(tmp_path / "m", "LlamaForCausalLM")
    expected = reference_greedy(reference(folder), PROMPT, 12)
    say_tied(folder)
    train_byte_level("qwen2").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with caplog.at_level(logging.WARNING):
        core = start_engine(folder, executables)
    assert "tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight" in caplog.text
    assert tokens_of(run(core, {"a": PROMPT}, greedy(12))["a"]) == expected
    convert(EngineConfig(model=str(folder)), tmp_path / "converted", lambda done, total: None)
    core = start_engine(tmp_path / "converted", executables)
    assert tokens_of(run(core, {"a": PROMPT}, greedy(12))["a"]) == expected


@pytest.mark.parametrize("row", [None, 0, 127])
def test_head_that_is_the_table_once_more_stays_tied(tmp_path: Path, row: int | None) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM")
    say_tied(folder)
    tensors = load_file(folder / "model.safetensors")
    head = np.array(tensors["model.embed_tokens.weight"])
    if row is not None:
        head[row, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    _, config = resolve(checkpoint.config(), source=folder)
    assert with_trained_head(config, checkpoint).tie_word_embeddings is (row is None)
