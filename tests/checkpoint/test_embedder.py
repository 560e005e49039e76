"""What sentence-transformers' files say of a model for embeddings."""

import json
import random
import secrets
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from jserve.checkpoint import Embedder, open_checkpoint, ranking_tokens
from jserve.errors import CheckpointError
from jserve.models.registry import resolve, resolve_encoder
from tests.checkpoint.embedder_maker import add_embedder_files
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf
from tests.checkpoint.header_fuzzer import damage_json

BERT = {
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 9,
}
MANY = dict.fromkeys(map(str, range(1001)), "")
MEAN = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def read(folder: Path, **config: Any) -> Embedder | None:
    (folder / "config.json").write_text(json.dumps(BERT | config))
    with closing(open_checkpoint(folder, needs_weights=False)) as checkpoint:
        return Embedder.of(checkpoint.config(), source=folder)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode_lasttoken": True, "include_prompt": False}, "last"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_is_read_in_older_and_newer_words(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    actual = read(add_embedder_files(tmp_path, config))
    assert actual is not None
    assert actual.pooling == pooling


def test_length_case_and_prompts_are_read(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "document"}
    files = {"sentence_bert_config": {"max_seq_length": 77, "do_lower_case": True}}
    actual = read(add_embedder_files(tmp_path, MEAN, config_sentence_transformers=prompts, **files))
    assert actual == Embedder("mean", 77, True, prompts["prompts"], "passage: ")
    add_embedder_files(tmp_path, MEAN, sentence_bert_config={"max_seq_length": None, "do_lower_case": False})
    (tmp_path / "config_sentence_transformers.json").unlink()
    assert read(tmp_path) == Embedder("mean")


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        ("BertModel", "mean"),
        ("XLMRobertaModel", "mean"),
        ("BertForMaskedLM", "mean"),
        ("Qwen3Model", "last"),
        ("LlamaForCausalLM", None),
        ("GPT2LMHeadModel", None),
        ("Gemma3ForConditionalGeneration", None),
    ],
)
def test_model_without_a_head_embeds_even_without_these_files(
    tmp_path: Path, architecture: str, pooling: str | None
) -> None:
    actual = read(tmp_path, architectures=[architecture])
    assert (actual and actual.pooling) == pooling


@pytest.mark.parametrize(("number", "pooling"), [(0, None), (1, "mean"), (2, "cls"), (3, "last"), (4, None), (9, None)])
def test_gguf_file_that_names_a_pooling_embeds(tmp_path: Path, number: int, pooling: str | None) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, metadata={"llama.pooling_type": number})
    with closing(open_checkpoint(path)) as checkpoint:
        actual = Embedder.of(checkpoint.config(), source=path)
        assert (actual and actual.pooling) == pooling
        _, config = resolve(checkpoint.config(), source=path)
        assert config.tie_word_embeddings == (pooling is not None or "lm_head.weight" not in checkpoint.tensors())


@pytest.mark.parametrize(
    ("pooling", "options", "words"),
    [
        ({**MEAN, "pooling_mode_cls_token": True}, {}, "cls_token, mean_tokens; supported is one of"),
        ({"pooling_mode_max_tokens": True}, {}, "max_tokens; supported"),
        ({"pooling_mode_weightedmean_tokens": True}, {}, "weightedmean"),
        ({}, {}, "its pooling is none"),
        ({"pooling_mode": 3}, {}, "its pooling is none"),
        ({**MEAN, "include_prompt": False}, {}, "include_prompt"),
        (MEAN, {"modules": ("Transformer", "Pooling", "Router")}, "'Router'; supported are Transformer"),
        (MEAN, {"modules": ("Transformer", "Normalize", "Pooling")}, "supported is the order Transformer, Pooling"),
        (MEAN, {"config_sentence_transformers": {"prompts": {"a": 3}}}, "prompts must be"),
        (MEAN, {"config_sentence_transformers": {"default_prompt_name": "b"}}, "default_prompt_name is 'b'"),
        (
            MEAN,
            {"config_sentence_transformers": {"prompts": MANY}},
            "1,001 prompts",
        ),
    ],
)
def test_what_would_make_other_vectors_is_refused(
    tmp_path: Path, pooling: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    add_embedder_files(tmp_path, pooling, **options)
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path)
    with pytest.raises(CheckpointError, match=words), closing(open_checkpoint(tmp_path, needs_weights=False)) as opened:
        resolve_encoder(opened.config(), source=tmp_path)


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "a/b", "..", "", 3, "a\\b"])
def test_module_outside_the_folder_is_refused(tmp_path: Path, path: Any) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Pooling"}]))
    with pytest.raises(CheckpointError, match="not a folder of the model"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "3"])
def test_damaged_list_of_modules_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read(tmp_path)


def test_damaged_configuration_is_read_or_refused(tmp_path: Path) -> None:
    seed = secrets.randbelow(2**32)
    rng = random.Random(seed)
    prompts = {"prompts": {"query": "q"}, "default_prompt_name": "query"}
    add_embedder_files(tmp_path, MEAN, sentence_bert_config={"max_seq_length": 7}, config_sentence_transformers=prompts)
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"type_vocab_size": 2, "layer_norm_eps": 1e-5}))
    with closing(open_checkpoint(tmp_path, needs_weights=False)) as checkpoint:
        sound = checkpoint.config()
    for _ in range(400):
        damaged = damage_json(sound, rng)
        if isinstance(damaged, dict):
            try:
                with suppress(CheckpointError):
                    resolve_encoder(damaged, source="config.json")
            except Exception as error:
                error.add_note(f"with seed {seed}: {damaged}")
                raise


@pytest.mark.parametrize("file", ["1_Pooling/config", "config_sentence_transformers", "sentence_bert_config"])
def test_file_that_is_no_object_is_refused(tmp_path: Path, file: str) -> None:
    add_embedder_files(tmp_path, MEAN)
    (tmp_path / f"{file}.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold an object"):
        read(tmp_path)


def test_decoder_of_another_family_that_attends_both_ways_is_refused() -> None:
    raw = {"architectures": ["Phi3ForCausalLM"], "jserve_embedder": {}, "is_causal": False}
    with pytest.raises(CheckpointError, match="attention to later tokens is not supported of Phi3ForCausalLM, only of"):
        resolve_encoder(raw, source="config.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"in_features": 0},
        {"activation_function": "torch.nn.modules.activation.ELU"},
        {"bias": None, "out_features": "8"},
    ],
)
def test_dense_module_that_is_not_one_is_refused(fields: dict[str, Any]) -> None:
    module = {"folder": "2_Dense", "in_features": 8, "out_features": 8, "activation_function": "x.Tanh"}
    facts = {"modules": ["Transformer", "Pooling", "Dense"], "pooling": {"modes": ["mean"]}, "dense": [module | fields]}
    with pytest.raises(CheckpointError, match=r"its Dense module '2_Dense' has sizes .* and"):
        Embedder.of(BERT | {"jserve_embedder": facts}, source="config.json")


def test_module_that_ranks_by_two_tokens_leaves_a_model_that_generates(tmp_path: Path) -> None:
    add_embedder_files(tmp_path, MEAN, modules=("Transformer", "LogitScore"))
    (tmp_path / "1_LogitScore" / "config.json").write_text('{"true_token_id": 9, "false_token_id": 4}')
    assert read(tmp_path, architectures=["Qwen3ForCausalLM"]) is None
    with closing(open_checkpoint(tmp_path, needs_weights=False)) as checkpoint:
        assert ranking_tokens(checkpoint.config(), source=tmp_path) == (9, 4)
    (tmp_path / "1_LogitScore" / "config.json").write_text('{"true_token_id": 9}')
    with (
        closing(open_checkpoint(tmp_path, needs_weights=False)) as checkpoint,
        pytest.raises(CheckpointError, match="supported are a true_token_id and a false_token_id"),
    ):
        ranking_tokens(checkpoint.config(), source=tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "supported is 'absolute'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"type_vocab_size": 0}, "type_vocab_size"),
        ({"hidden_act": "quick"}, "hidden_act"),
        ({"num_attention_heads": 3}, "do not make an encoder"),
        ({"architectures": ["RobertaModel"], "max_position_embeddings": 2}, "do not make an encoder"),
    ],
)
def test_encoder_of_another_kind_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        resolve_encoder({**BERT, **fields}, source="config.json")
