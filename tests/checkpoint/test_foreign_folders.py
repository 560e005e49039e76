"""Folders as people publish them: loaded for what they are, or refused with the true cause."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jserve.checkpoint import find_gguf, open_checkpoint
from jserve.errors import CheckpointError
from jserve.models.registry import resolve
from jserve.quant.detect import detect
from jserve.text.load import load_tokenizer

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
TENSORS = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}


def written(path: Path, files: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        look(folder)
    return str(raised.value)


def look(folder: Path) -> None:
    """What a start reads before weights."""
    checkpoint = open_checkpoint(folder)
    resolve(checkpoint.config(), source=folder)
    detect(checkpoint.config(), None, checkpoint.tensors(), source=folder)


def test_shards_without_an_index_are_all_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG})
    for number, (name, tensor) in enumerate(TENSORS.items(), 1):
        save_file({name: tensor}, folder / f"model-{number:05d}-of-00002.safetensors")
    assert set(open_checkpoint(folder).tensors()) == {"a", "b"}
    (folder / "model-00002-of-00002.safetensors").rename(folder / "aside")
    assert "model-00002-of-00002.safetensors is missing, which is one of the model's shards" in refusal(folder)
    (folder / "aside").rename(folder / "other-00001-of-00001.safetensors")
    assert "several sets of shards (model-...-of-00002, other-...-of-00001)" in refusal(folder)


def test_shards_with_one_tensor_twice_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG})
    for number in (1, 2):
        save_file({"a": TENSORS["a"]}, folder / f"model-0000{number}-of-00002.safetensors")
    assert "has tensor 'a', as another shard has too" in refusal(folder)


@pytest.mark.parametrize("has_config", [True, False])
def test_adapter_is_called_one_and_its_base_is_named(tmp_path: Path, has_config: bool) -> None:
    adapter = {"adapter_config.json": {"base_model_name_or_path": "org/base"}}
    folder = written(tmp_path / "m", adapter | ({"config.json": CONFIG} if has_config else {}))
    save_file(TENSORS, folder / "adapter_model.safetensors")
    assert "holds a LoRA adapter of 'org/base' (adapter_config.json) and no model" in refusal(folder)
    if not has_config:
        with pytest.raises(CheckpointError, match="holds a LoRA adapter of 'org/base'"):
            load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("pytorch_model.bin", "only pickled weights (pytorch_model.bin), which can run code when read"),
        ("tf_model.h5", "weights of TensorFlow alone (tf_model.h5)"),
        ("flax_model.msgpack", "weights of Flax alone (flax_model.msgpack)"),
    ],
)
def test_other_weights_are_named(tmp_path: Path, name: str, cause: str) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG, name: "x"})
    assert cause in refusal(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5368709120\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"])
def test_a_clone_without_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    """Not a file that is "truncated or damaged", nor one of two exabytes."""
    files = {"config.json": CONFIG, "tokenizer.json": {}}
    written(tmp_path, files)
    (tmp_path / name).write_text(POINTER)
    load = load_tokenizer if name == "tokenizer.json" else look
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS .* `git lfs pull`"):
        load(tmp_path)


def test_a_gguf_pointer_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    with pytest.raises(CheckpointError, match="pointer of Git LFS"):
        open_checkpoint(tmp_path / "m.gguf")


def test_gguf_files_beside_a_config_count_where_there_are_no_others(tmp_path: Path) -> None:
    written(tmp_path, {"config.json": CONFIG})
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    assert "holds 2 GGUF files (a.gguf, b.gguf); name one" in refusal(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert find_gguf(tmp_path) is None


@pytest.mark.parametrize("names", [5, True, {"a": 1}, [3], "LlamaForCausalLM"])
def test_architectures_that_are_no_list_of_names_are_refused(tmp_path: Path, names: Any) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        resolve({**CONFIG, "architectures": names}, source=tmp_path)


def test_mistrals_own_file_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG})
    save_file(TENSORS, folder / "consolidated.safetensors")
    assert "consolidated.safetensors in the format of Mistral's own library" in refusal(folder)


def test_code_that_comes_with_a_model_is_not_run_and_said_to_be_there(tmp_path: Path) -> None:
    config = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    folder = written(tmp_path / "m", {"config.json": config})
    save_file(TENSORS, folder / "model.safetensors")
    assert "OwnForCausalLM is not supported (it comes with code of its own, named in auto_map" in refusal(folder)
    known = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "x.Y"}}
    assert resolve(known, source="m")[1].architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("config", "files", "cause"),
    [
        ({}, {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}, "by 'modelopt (NVFP4, says hf_quant"),
        ({}, {"hf_quant_config.json": {"producer": {}}}, "by 'modelopt (None, says hf_quant_config.json)'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, {}, "quantized by 'mlx'"),
        (
            {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}},
            {},
            "quantized by 'mlx'",
        ),
        ({"quantization_config": {"bits": 4}}, {}, "must be an object with a quant_method"),
        ({"quantization_config": "awq"}, {}, "quantization_config is 'awq' but must be an object"),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "modules_to_not_convert": 3}},
            {},
            "does not hold together",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}}, {}, "hold together"),
    ],
)
def test_quantization_that_is_not_supported_is_named(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], cause: str
) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG | config} | files)
    save_file(TENSORS, folder / "model.safetensors")
    assert cause in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}, "gptq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}, "awq"),
    ],
)
def test_quantization_that_another_file_says_is_taken_from_it(
    tmp_path: Path, file: str, content: dict[str, Any], method: str
) -> None:
    folder = written(tmp_path / "m", {"config.json": CONFIG, file: content})
    save_file(TENSORS, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    actual = detect(checkpoint.config(), None, checkpoint.tensors(), source=folder)
    assert actual is not None
    assert actual.name == method


def test_patterns_of_a_larger_model_match_its_text_part() -> None:
    group = {"weights": {"num_bits": 8, "type": "int", "symmetric": True}, "format": "int-quantized"}
    stored = {
        "quant_method": "compressed-tensors",
        "config_groups": {"0": {**group, "targets": ["re:.*language_model.*proj$"]}},
        "ignore": [
            "re:vision_tower.*",
            "language_model.model.layers.1.mlp.down_proj",
            "model.language_model.layers.2.mlp",
        ],
    }
    quantization = detect({"quantization_config": stored}, None, {}, source="m")
    assert quantization is not None
    assert quantization.scheme("model.layers.0.self_attn.q_proj") is not None
    assert quantization.scheme("model.layers.1.mlp.down_proj") is None


def test_float8_under_the_names_of_transformers() -> None:
    stored = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    name = "model.layers.0.self_attn.q_proj"
    for scale, input_scale in (("weight_scale_inv", "activation_scale"), ("weight_scale", "input_scale")):
        tensors = {f"{name}.{scale}": np.ones(()), f"{name}.{input_scale}": np.ones(())}
        quantization = detect({"quantization_config": stored}, None, {k: _Info() for k in tensors}, source="m")
        assert quantization is not None
        scheme = quantization.scheme(name)
        assert scheme is not None
        assert set(scheme.tensors("weight", (4, 4))) == {"weight", scale, input_scale}


class _Info:
    dtype = "float32"
