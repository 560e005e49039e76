"""What docs/models.md says of GGUF files that are refused, in the words that a user reads."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from jserve.checkpoint import open_checkpoint
from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from tests.checkpoint.gguf.families_maker import write_family
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.gguf.test_gguf_families import FAMILIES
from tests.worlds import make_model

TEXT = " ".join((Path(__file__).parents[3] / "docs" / "models.md").read_text().split())


def test_a_layer_that_predicts_a_second_token_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, family, fields = FAMILIES["deepseek 3"]
    folder = make_model(tmp_path / "hf", family, **fields)
    write_header = gguf.GGUFWriter.write_header_to_file

    def with_one_more(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("deepseek2.nextn_predict_layers", 1)
        writer.add_tensor("blk.61.nextn.eh_proj.weight", np.zeros((32, 64), np.float32))
        write_header(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_one_more)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(write_family(tmp_path / "m.gguf", folder, architecture))
    assert str(refused.value).partition(": ")[2] in TEXT


@pytest.mark.parametrize("name", ["whitespace"])
def test_a_pre_tokenizer_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": ["a a"]}
    file = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata={**metadata, "tokenizer.ggml.pre": name})
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer(file)
    said = str(refused.value).partition(": ")[2].replace(", ".join(sorted(PRE_TOKENIZERS)), "…")
    assert said in TEXT
    assert f"`{name}`" in TEXT
