"""Tokenizers of BERT in GGUF files, written as llama.cpp's converter does, are those of their Hugging Face folders."""

import json
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from jserve.checkpoint import open_checkpoint
from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from tests.worlds import make_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, "un", "##aff", "##able", "cafe", "[", "]", "##]", ".", "漢", "a"]
NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)


def phantom(token: str) -> str:
    """The converter's lines, word for word but for the name of the mark."""
    if token.startswith("[") and token.endswith("]"):
        return token
    if token.startswith("##"):
        return token[2:]
    return "\u2581" + token


def write_bert(path: Path, folder: Path, *, offset: int = 0, tokens: list[str] = TOKENS, pooling: int = 1) -> Path:
    """`offset` rows of the table of positions are left out, as of RoBERTa."""
    writer = gguf.GGUFWriter(str(path), "bert")
    with closing(open_checkpoint(folder)) as checkpoint:
        config = checkpoint.config()
        writer.add_context_length(config["max_position_embeddings"] - offset)
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_causal_attention(False)
        writer.add_uint32("bert.pooling_type", pooling)
        writer.add_tokenizer_model("bert")
        writer.add_token_list([phantom(token) for token in tokens])
        writer.add_token_type_count(config["type_vocab_size"])
        for name in checkpoint.tensors():
            stem, _, suffix = name.rpartition(".")
            if "position_ids" in name or "pooler" in name:
                continue
            values = np.array(checkpoint.read(name), np.float32)
            values = values[offset:] if "position_embeddings" in name else values
            writer.add_tensor(f"{NAMES.get_name(stem)}.{suffix}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tokens_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "hf", "BertModel")
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    mine, original = load_tokenizer(write_bert(tmp_path / "m.gguf", folder)), load_tokenizer(folder)
    for text in ("Unaffable café.", "[MASK] a [x]", "漢漢a]", "", " \t unaff "):
        assert mine.encode(text, True) == original.encode(text, True)
    assert mine.encode("unaffable", True) == [2, 5, 6, 7, 3]
    assert mine.special_tokens == original.special_tokens


def test_vocabulary_with_capitals_keeps_them(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "hf", "BertModel")
    path = write_bert(tmp_path / "m.gguf", folder, tokens=[*TOKENS, "A"])
    assert load_tokenizer(path).encode("A a", False) == [len(TOKENS), TOKENS.index("a")]


@pytest.mark.parametrize(("tokens", "words"), [(TOKENS[:3], "no token"), ([*TOKENS, "a"], "twice")])
def test_other_vocabulary_is_refused(tmp_path: Path, tokens: list[str], words: str) -> None:
    path = write_bert(tmp_path / "m.gguf", make_model(tmp_path / "hf", "BertModel"), tokens=tokens)
    with pytest.raises(CheckpointError, match=words):
        load_tokenizer(path)
