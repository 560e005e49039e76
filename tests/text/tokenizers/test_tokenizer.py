"""Tokenizers from every kind of file, against `transformers.AutoTokenizer`."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from jserve.errors import CheckpointError
from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from jserve.text.tokenizers.tokenizer import Tokenizer
from tests.text.tokenizers.tokenizer_maker import (
    CHATML,
    SAMPLES,
    save_byte_level_gguf,
    save_directory,
    save_sentencepiece_gguf,
    train_byte_level,
    train_sentencepiece,
)

NAMED = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def _assert_same(mine: Tokenizer, reference: Any) -> None:
    for text in [*SAMPLES, " ".join(SAMPLES), "\n".join(SAMPLES)]:
        for add in (True, False):
            expected = reference.encode(text, add_special_tokens=add)
            assert mine.encode(text, add) == expected, (text, add)
        for skip in (True, False):
            ids = reference.encode(text)
            expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert mine.decode(ids, skip) == expected
    assert mine.encode_batch(SAMPLES, False) == [mine.encode(text, False) for text in SAMPLES]
    assert set(mine.special_ids) >= set(reference.all_special_ids)
    assert (mine.bos_token_id, mine.eos_token_id) == (reference.bos_token_id, reference.eos_token_id)
    assert mine.num_ids == len(reference)


CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smollm": ("smollm", "llama", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}),
    "llama3": ("llama-bpe", "llama", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}),
    "llama3 declared as llama": ("llama-bpe", "llama", {"tokenizer_class": "LlamaTokenizerFast", **NAMED}),
    "qwen2": ("qwen2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}),
    "tekken": ("tekken", "llama", {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}),
    "asks for bos and eos": (
        "gpt-2",
        "llama",
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": True, **NAMED},
    ),
    "tokens as objects, and more of them": (
        "gpt-2",
        "llama",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": {"content": "<|im_end|>", "lstrip": False, "special": True, "__type": "AddedToken"},
            "bos_token": "<s>",
            "additional_special_tokens": ["[INST]", "[/INST]"],
            "added_tokens_decoder": {
                "0": {"content": "<|endoftext|>", "special": True},
                "700": {"content": "<tool_call>", "special": False, "normalized": False},
            },
        },
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_byte_level_directory_gives_the_tokens_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    pre, model_type, config = CONFIGS[name]
    save_directory(tmp_path, train_byte_level(pre), config, model_type)
    _assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_the_post_processor_of_the_file_decides_over_bos(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    backend = train_byte_level("llama-bpe")
    backend.post_processor = TemplateProcessing(
        single="<|im_start|>:0 $A:0", pair=None, special_tokens=[("<|im_start|>", 1)]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED, **config}
    save_directory(tmp_path, backend, config, "llama")
    mine = load_tokenizer(tmp_path)
    assert mine.encode("fox", True)[0] == 1
    _assert_same(mine, AutoTokenizer.from_pretrained(tmp_path))


def test_a_byte_level_file_keeps_its_pre_tokenizer_whatever_class_is_declared(tmp_path: Path) -> None:
    """SmolLM2 declares GPT2Tokenizer, which in transformers 5 forgets to split numbers into digits."""
    backend = train_byte_level("smollm")
    save_directory(tmp_path, backend, {"tokenizer_class": "GPT2Tokenizer", **NAMED}, "llama")
    mine = load_tokenizer(tmp_path)
    for text in SAMPLES:
        assert mine.encode(text, False) == backend.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


LLAMA2 = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_sentencepiece_repository_gives_the_tokens_of_transformers(
    tmp_path: Path, sentencepiece_model: Path, legacy: bool
) -> None:
    from transformers import AutoTokenizer

    save_directory(tmp_path, None, {**LLAMA2, "legacy": legacy, "add_bos_token": True}, "llama")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    _assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


def test_a_sentencepiece_directory_with_tokenizer_json_gives_the_tokens_of_transformers(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    from transformers import AutoTokenizer

    source = save_directory(tmp_path / "source", None, LLAMA2, "llama")
    (source / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "llama"}')
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    _assert_same(load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_a_byte_level_gguf_gives_the_tokens_of_the_original_directory(tmp_path: Path, pre: str) -> None:
    backend = train_byte_level(pre)
    directory = save_directory(
        tmp_path / "hf", backend, {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}, "llama"
    )
    gguf = save_byte_level_gguf(tmp_path / "m.gguf", backend, pre, ggml__add_bos_token=False)
    original, mine = load_tokenizer(directory), load_tokenizer(gguf)
    for text in [*SAMPLES, "\n".join(SAMPLES)]:
        ids = original.encode(text, True)
        assert mine.encode(text, True) == ids, text
        assert mine.decode(ids, True) == original.decode(ids, True)
        assert mine.decode(ids, False) == original.decode(ids, False)
    assert mine.special_ids == original.special_ids
    assert mine.special_tokens == original.special_tokens


def test_a_sentencepiece_gguf_gives_the_tokens_of_the_original_and_of_transformers(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    from transformers import AutoTokenizer

    directory = save_directory(tmp_path / "hf", None, {**LLAMA2, "add_bos_token": True}, "llama")
    (directory / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    mine = load_tokenizer(save_sentencepiece_gguf(tmp_path / "m.gguf", sentencepiece_model))
    _assert_same(mine, AutoTokenizer.from_pretrained(directory))


@pytest.mark.parametrize(
    ("pre", "metadata", "first"),
    [
        ("llama-bpe", {}, [1]),
        ("llama-bpe", {"ggml__add_bos_token": False}, []),
        ("qwen2", {}, []),
        ("qwen2", {"ggml__add_bos_token": True}, [1]),
    ],
)
def test_a_text_begins_with_bos_where_the_file_or_its_family_says_so(
    tmp_path: Path, pre: str, metadata: dict[str, Any], first: list[int]
) -> None:
    tokenizer = load_tokenizer(save_byte_level_gguf(tmp_path / "m.gguf", train_byte_level(pre), pre, **metadata))
    assert tokenizer.encode("fox", True) == [*first, *tokenizer.encode("fox", False)]


def test_the_real_model_splits_digits_and_otherwise_agrees_with_transformers(real_gguf: Path) -> None:
    """Transformers' own loader knows no pre-tokenizer `smollm`, which splits numbers into digits."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name)
    mine = load_tokenizer(real_gguf)
    for text in SAMPLES:
        if not any(character.isnumeric() for character in text):
            assert mine.encode(text, True) == reference.encode(text), text
        assert mine.decode(mine.encode(text, True), False) == text
    assert [mine.token_text(number) for number in mine.encode("in 2024", False)] == ["in", " ", *"2024"]
    assert mine.chat_template == reference.chat_template
    assert (mine.bos_token, mine.eos_token, mine.num_ids) == ("<|im_start|>", "<|im_end|>", 49_152)


def test_token_bytes_of_a_byte_level_text_join_to_the_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_byte_level_gguf(tmp_path / "m.gguf", train_byte_level("gpt-2"), "gpt-2"))
    for text in SAMPLES:
        ids = tokenizer.encode(text, False)
        assert b"".join(tokenizer.token_bytes(number) for number in ids) == text.encode()
    assert tokenizer.token_text(tokenizer.encode("👍", False)[0]) in ("\ufffd", "👍")
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.is_special(1)
    assert not tokenizer.is_special(tokenizer.token_id("<think>"))


def test_token_bytes_of_a_sentencepiece_text_join_to_the_text(tmp_path: Path, sentencepiece_model: Path) -> None:
    tokenizer = load_tokenizer(save_sentencepiece_gguf(tmp_path / "m.gguf", sentencepiece_model))
    text = "The fox 👍 你"
    joined = b"".join(tokenizer.token_bytes(number) for number in tokenizer.encode(text, False))
    assert joined.decode() == " " + text


def test_special_tokens_map_names_what_the_config_leaves_out(tmp_path: Path) -> None:
    save_directory(tmp_path, train_byte_level("gpt-2"), {"tokenizer_class": "PreTrainedTokenizerFast"}, "llama")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert load_tokenizer(tmp_path).eos_token == "<|im_end|>"


def test_a_length_limit_of_training_does_not_cut_prompts(tmp_path: Path) -> None:
    backend = train_byte_level("gpt-2")
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    save_directory(tmp_path, backend, {"tokenizer_class": "PreTrainedTokenizerFast"}, "llama")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(SAMPLES[0], True), False) == SAMPLES[0]


def test_a_long_text_is_encoded_without_the_gil(tmp_path: Path) -> None:
    """Python works beside it, for a good part of the CPU time that it takes."""
    tokenizer = load_tokenizer(save_byte_level_gguf(tmp_path / "m.gguf", train_byte_level("gpt-2"), "gpt-2"))
    text = " ".join(SAMPLES) * 3000
    began, began_here = time.process_time(), time.thread_time()
    thread = threading.Thread(target=tokenizer.encode, args=(text, False))
    thread.start()
    while thread.is_alive():
        pass
    here = time.thread_time() - began_here
    assert here > 0.2 * (time.process_time() - began - here), "holding the GIL leaves this loop some milliseconds"


def test_loading_a_gguf_or_a_byte_level_directory_imports_neither_transformers_nor_numpy(
    tmp_path: Path,
) -> None:
    backend = train_byte_level("smollm")
    gguf = save_byte_level_gguf(tmp_path / "m.gguf", backend, "smollm")
    directory = save_directory(tmp_path / "hf", backend, {"tokenizer_class": "GPT2Tokenizer"}, "llama")
    script = (
        "import sys; from jserve.text.load import load_tokenizer; "
        f"[load_tokenizer(p).encode('x', True) for p in ({str(gguf)!r}, {str(directory)!r})]; "
        "print([m for m in ('jax', 'torch', 'transformers', 'numpy', 'gguf') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ggml__model": "rwkv", "ggml__tokens": ["a"]}, "tokenizer.ggml.model is 'rwkv'"),
        ({"ggml__model": "gpt2"}, r"tokenizer\.ggml\.tokens is missing"),
        (
            {"ggml__model": "gpt2", "ggml__tokens": ["a"], "ggml__merges": ["a a"], "ggml__pre": "whitespace"},
            "whitespace",
        ),
        (
            {"ggml__model": "gpt2", "ggml__tokens": ["a"], "ggml__merges": ["a a"], "ggml__pre": "gpt-2"},
            "which are not tokens",
        ),
        (
            {"ggml__model": "gpt2", "ggml__tokens": ["a"], "ggml__token_type": [1, 2]},
            "one number for each token",
        ),
        (
            {"ggml__model": "llama", "ggml__tokens": ["a"], "ggml__scores": [1.0, 2.0]},
            "one score for each token",
        ),
        (
            {"ggml__model": "llama", "ggml__tokens": ["a"], "ggml__scores": [1.0], "ggml__bos_token_id": 9},
            "names token 9 but there are 1 tokens",
        ),
    ],
)
def test_a_gguf_without_a_usable_tokenizer_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    import gguf

    from tests.text.tokenizers.tokenizer_maker import finish

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    finish(writer, metadata)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path / "m.gguf")


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_directory_without_anything_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; --model takes"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)


def test_a_damaged_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    save_directory(tmp_path, None, LLAMA2, "llama")
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="transformers cannot load its tokenizer"):
        load_tokenizer(tmp_path)


def test_chat_templates_are_found_in_every_place(tmp_path: Path) -> None:
    backend = train_byte_level("gpt-2")
    listed = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "T"}]
    directory = save_directory(tmp_path / "a", backend, {"chat_template": listed}, "gpt2")
    assert load_tokenizer(directory).chat_templates == {"default": "A", "tool_use": "T"}
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert load_tokenizer(directory).chat_template == "J"
    (directory / "chat_template.jinja").write_text("É")
    assert load_tokenizer(directory).chat_template == "É"
    named = directory / "additional_chat_templates"
    named.mkdir()
    (named / "rag.jinja").write_text("R")
    assert load_tokenizer(directory).chat_templates["rag"] == "R"
    gguf = save_byte_level_gguf(
        tmp_path / "m.gguf", backend, "gpt-2", chat_template=CHATML, chat_template__tool_use="T"
    )
    assert load_tokenizer(gguf).chat_templates == {"default": CHATML, "tool_use": "T"}
    bare = save_byte_level_gguf(tmp_path / "bare.gguf", backend, "gpt-2")
    assert load_tokenizer(bare).chat_template is None


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("dbrx", "I'll 12345 go", ["I", "'ll", "Ġ", "123", "45", "Ġgo"]),
        ("gpt-4o", "HelloWorld's 12345/\nI'LL", ["Hello", "World's", "Ġ", "123", "45", "/Ċ", "I'LL"]),
        ("deepseek-v3", "x1234 !abc don't  go", ["x", "123", "4", "Ġ!", "abc", "Ġdon", "'t", "Ġ", "Ġgo"]),
        ("olmo", "I'll 12345 go", ["I", "'ll", "Ġ12345", "Ġgo"]),
        ("falcon", "a1234567!? b", ["a", "123", "456", "7", "!?", "Ġb"]),
        ("bloom", "ab, c! d", ["ab", ",", "Ġc", "!", "Ġd"]),
        ("viking", "ab12 c", ["ab", "1", "2", "Ġc"]),
        ("qwen35", "xe\u0301 12", ["xeÌģ", "Ġ", "1", "2"]),
        ("glm4", "I'LL 1234 go", ["I", "'LL", "Ġ", "123", "4", "Ġgo"]),
        ("deepseek-llm", "a12 bc!?\n\nd", ["a", "1", "2", "Ġbc", "!?", "Ċ", "Ċ", "d"]),
        ("deepseek-coder", "a12 b_c()\n", ["a", "1", "2", "Ġb", "_", "c", "()", "Ċ"]),
        ("kimi-k2", "Hi\u4f60\u597dWorld's 1234!\n", ["Hi", "ä½łå¥½", "World's", "Ġ", "123", "4", "!Ċ"]),
        ("seed-coder", "a 12!\n\nb", ["a", "Ġ", "1", "2", "!", "ĊĊ", "b"]),
        ("bailingmoe", "a'S 12!\n\nb", ["a", "'S", "Ġ", "1", "2", "!ĊĊ", "b"]),
        ("tiny_aya", "1234567 HelloWorld", ["1", "234", "567", "ĠHello", "World"]),
        ("afmoe", "12345 \u4f60\u597da", ["12", "345", "Ġ", "ä½łå¥½", "a"]),
        ("superbpe", "two words 1234", ["twoĠwordsĠ", "1", "234"]),
        ("minicpm5", "I'll 1234", ["I", "'ll", "Ġ", "123", "4"]),
        ("laguna", "a12\n\nb", ["a", "1", "2", "ĊĊ", "b"]),
        ("ufakzeka", "I'll go", ["I", "'ll", "Ġgo"]),
        ("spark2_5", "a! 1234\nb", ["a", "!", "Ġ", "1", "2", "3", "4", "Ċ", "b"]),
        ("youtu", "\ud55c12 ab", ["íķľ", "1", "2", "Ġab"]),
        ("exaone-moe", "ab cd 12", ["abĠcd", "Ġ", "1", "2"]),
        ("jais-2", "a" + " " * 7 + "b", ["a", "ĠĠĠĠ", "ĠĠ", "Ġb"]),
        ("chameleon", "a  12!", ["a", "ĠĠ", "1", "2", "!"]),
    ],
)
def test_vocabularies_of_gguf_files_cut_text_as_the_original(name: str, text: str, pieces: list[str]) -> None:
    assert [piece for piece, _ in PRE_TOKENIZERS[name].splitter().pre_tokenize_str(text)] == pieces
