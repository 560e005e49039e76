"""The tokens that end an answer: of the tokenizer's files, and of GGUF files as llama.cpp knows them."""

from pathlib import Path
from typing import Any

import pytest

from jserve.checkpoint.gguf.end_tokens import end_tokens
from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.end_token import end_token_ids
from tests.text.tokenizers.tokenizer_maker import save_byte_level_gguf, save_directory, train_byte_level

CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize("token", ["<|im_end|>", {"content": "<|im_end|>", "special": True}])
@pytest.mark.parametrize("added", [{}, {"added_tokens_decoder": {"2": {"content": "<|im_end|>", "special": True}}}])
def test_end_of_the_tokenizer_is_read_from_its_files_alone(tmp_path: Path, token: Any, added: dict[str, Any]) -> None:
    """mlx-lm#1414"""
    folder = save_directory(tmp_path, train_byte_level("qwen2"), {**CONFIG, "eos_token": token, **added}, "llama")
    assert end_token_ids(folder) == {load_tokenizer(folder).eos_token_id}


def test_tokenizer_without_an_end_names_none(tmp_path: Path) -> None:
    assert end_token_ids(save_directory(tmp_path, train_byte_level("qwen2"), CONFIG, "llama")) == frozenset()
    assert end_token_ids(tmp_path / "nowhere") == frozenset()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token": 7}, "eos_token is 7 but must be a token"),
        ({"eos_token": {"text": "x"}}, "eos_token is {'text': 'x'} but must be a token"),
        ({"added_tokens_decoder": {"2": "x"}}, "added_tokens_decoder has '2': 'x' but must map ids to tokens"),
        ({"added_tokens_decoder": {"two": {"content": "x"}}}, "added_tokens_decoder has 'two'"),
        ({"added_tokens_decoder": []}, None),
        ({"added_tokens_decoder": [1]}, r"added_tokens_decoder is \[1\] but must be an object"),
        ({"additional_special_tokens": [1]}, r"additional_special_tokens is \[1\] but must be tokens"),
        ({"extra_special_tokens": {"image_token": None}}, "extra_special_tokens is .* but must be tokens"),
        ({"tokenizer_class": 3}, "tokenizer_class is 3 but must be text"),
    ],
)
def test_fields_of_a_tokenizers_configuration_are_checked(
    tmp_path: Path, fields: dict[str, Any], message: str | None
) -> None:
    folder = save_directory(tmp_path, train_byte_level("qwen2"), {**CONFIG, **fields}, "llama")
    if message is None:
        load_tokenizer(folder)
        return
    for load in (load_tokenizer, end_token_ids):
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_template_has_the_tokens_that_a_tokenizer_names_itself(tmp_path: Path) -> None:
    extra = {"extra_special_tokens": {"image_token": "<|im_start|>"}, "chat_template": "x"}
    tokenizer = load_tokenizer(save_directory(tmp_path, train_byte_level("qwen2"), {**CONFIG, **extra}, "llama"))
    assert tokenizer.special_tokens["image_token"] == "<|im_start|>"


@pytest.mark.parametrize("name", ["<|eot_id|>", "<end_of_turn>", "<EOT>", "[EOT]", "<|eom_id|>", "<end_of_utterance>"])
def test_end_of_a_turn_in_a_gguf_file_ends_and_is_one_token_whatever_its_type(tmp_path: Path, name: str) -> None:
    """llama.cpp#9609"""
    backend = train_byte_level("llama-bpe")
    backend.add_tokens([name])  # as text of the usual type: the maker writes 1
    file = save_byte_level_gguf(tmp_path / "m.gguf", backend, "llama-bpe")
    tokenizer = load_tokenizer(file)
    number = backend.token_to_id(name)
    assert tokenizer.encode(f"a{name}b", add_special_tokens=False).count(number) == 1
    assert tokenizer.is_special(number)
    assert end_tokens({"tokenizer.ggml.tokens": ["a", name], "tokenizer.ggml.eos_token_id": 0}) == [0, 1]


@pytest.mark.parametrize("role", ["eot", "eom"])
def test_end_that_only_its_role_names_is_a_control_token(tmp_path: Path, role: str) -> None:
    backend = train_byte_level("llama-bpe")
    backend.add_tokens(["<stop here>"])
    number = backend.token_to_id("<stop here>")
    file = save_byte_level_gguf(tmp_path / "m.gguf", backend, "llama-bpe", **{f"ggml__{role}_token_id": number})
    tokenizer = load_tokenizer(file)
    assert tokenizer.encode("a<stop here>", add_special_tokens=False)[-1] == number
    assert number in end_tokens({f"tokenizer.ggml.{role}_token_id": number, "tokenizer.ggml.tokens": ["a"]})


def test_end_of_a_message_does_not_end_an_answer_of_several() -> None:
    tokens = ["<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"]
    assert end_tokens({"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eot_token_id": 0}) == [1, 2, 3]
