"""What docs/models.md says of GGUF files that are refused, in the words that a user reads."""

from pathlib import Path

import pytest

from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf

TEXT = " ".join((Path(__file__).parents[3] / "docs" / "models.md").read_text().split())


@pytest.mark.parametrize("name", ["whitespace"])
def test_a_pre_tokenizer_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": ["a a"]}
    file = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata={**metadata, "tokenizer.ggml.pre": name})
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer(file)
    said = str(refused.value).partition(": ")[2].replace(", ".join(sorted(PRE_TOKENIZERS)), "…")
    assert said in TEXT
    assert f"`{name}`" in TEXT
