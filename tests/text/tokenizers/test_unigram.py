"""Sentencepiece's unigrams in a GGUF file, written as llama.cpp's converter does, against transformers' XLM-RoBERTa."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from tests.text.tokenizers.tokenizer_maker import SAMPLES

FAIRSEQ = [("<s>", 3), ("<pad>", 3), ("</s>", 3), ("<unk>", 2)]
"""What XLM-RoBERTa has in place of sentencepiece's first three pieces, with the types of GGUF."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the model as it is published: `sentencepiece.bpe.model`, whatever its name."""
    made = tmp_path_factory.mktemp("xlm-roberta")
    (made / "corpus.txt").write_text("\n".join(SAMPLES * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(made / "corpus.txt"),
        model_prefix=str(made / "sentencepiece.bpe"),
        model_type="unigram",
        vocab_size=160,
        character_coverage=0.99,
        minloglevel=2,
    )
    (made / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return made


def write(path: Path, folder: Path, **wrong: Any) -> Path:
    """`_xlmroberta_set_vocab` of llama.cpp's converter; `wrong` are keys that say something else."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "sentencepiece.bpe.model").read_bytes())
    pieces = [*((token, 0.0, kind) for token, kind in FAIRSEQ), *((p.piece, p.score, 1) for p in proto.pieces[3:])]
    pieces.append(("<mask>", 0.0, 3))
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    for name, number in {"bos": 0, "eos": 2, "unknown": 3, "padding": 1, **wrong}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_texts_and_pairs_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    mine, original = load_tokenizer(write(tmp_path / "m.gguf", folder)), load_tokenizer(folder)
    for text in SAMPLES:
        assert mine.encode(text, True) == original.encode(text, True), text
        assert mine.encode(text, False) == original.encode(text, False)
        assert mine.encode_pair("who?", text) == original.encode_pair("who?", text)
    pair = mine.encode_pair("a", "b")
    assert [token for token in pair.token_ids if token in (0, 2)] == [0, 2, 2, 2]
    assert pair.second_text == 0, "all tokens are of one type"
    assert mine.special_tokens["bos_token"] == "<s>"


def test_file_without_an_unknown_token_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs an unknown token"):
        load_tokenizer(write(tmp_path / "m.gguf", folder, unknown=9999))
