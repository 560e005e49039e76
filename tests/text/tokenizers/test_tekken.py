"""`tekken.json`, Mistral's own file, where a repository has no other: ids are ranks after the control tokens."""

import base64
import json
from pathlib import Path

import pytest

from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer

CONTROL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
MERGED = (b"he", b"ll", b"hell", b"hello", b" w", b"or")
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that tells its architecture and holds a tiny `tekken.json`."""
    pieces = [*(bytes([value]) for value in range(256)), *MERGED]
    size = len(pieces) + len(CONTROL)
    content = {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": size,
            "default_num_special_tokens": len(CONTROL),
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(CONTROL)
        ],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    config = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": size}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def _of_bytes(text: str) -> list[int]:
    return [len(CONTROL) + value for value in text.encode()]


def test_text_becomes_the_ids_that_ranks_give(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    hello, w, two = (len(CONTROL) + 256 + MERGED.index(piece) for piece in (b"hello", b" w", b"or"))
    assert tokenizer.encode("hello world", add_special_tokens=False) == [hello, w, two, *_of_bytes("ld")]
    assert tokenizer.encode("h\u00e9 12", add_special_tokens=False) == _of_bytes("h\u00e9 12")
    assert tokenizer.encode("[INST]x[/INST]</s>", add_special_tokens=False) == [3, *_of_bytes("x"), 4, 2]
    text = "hello  \u4e16\u754c\n\n 123 \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True) == text


def test_a_text_begins_with_the_first_token_and_roles_are_known(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("hello", add_special_tokens=True)[0] == CONTROL.index("<s>")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == ("<s>", "</s>", 2)
    assert tokenizer.special_ids == frozenset(range(len(CONTROL)))
    assert "pad_token" not in tokenizer.special_tokens


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"config": {}, "vocab": 3}'])
def test_a_damaged_file_is_refused(folder: Path, content: str) -> None:
    (folder / "tekken.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot load its tokenizer"):
        load_tokenizer(folder)
