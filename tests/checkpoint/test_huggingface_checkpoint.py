"""Hugging Face directories: what they hold, and how damaged ones are refused."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jserve.checkpoint import open_checkpoint
from jserve.checkpoint.safetensors_file import SafetensorsFile
from jserve.errors import CheckpointError

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8}


def _directory(path: Path, config: Any = CONFIG) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def _safetensors(header: Any, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


STATE = {
    "model.embed_tokens.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "layers.0.q.weight": np.arange(8, dtype=np.float16).reshape(2, 4),
    "scale": np.array(3, np.int64),
    "none": np.zeros((0, 4), np.float32),
}


def test_a_single_file_is_read_as_views_under_its_own_names(tmp_path: Path) -> None:
    save_file(STATE, _directory(tmp_path) / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "huggingface"
    assert checkpoint.config() == CONFIG
    assert checkpoint.generation_config() == {}
    assert set(checkpoint.tensors()) == set(STATE)
    for name, values in STATE.items():
        read = checkpoint.read(name)
        np.testing.assert_array_equal(read, values)
        assert read.dtype == values.dtype
        assert checkpoint.tensors()[name].dtype == values.dtype.name
    part = checkpoint.read("model.embed_tokens.weight", (slice(1, 3), slice(2, None)))
    np.testing.assert_array_equal(part, STATE["model.embed_tokens.weight"][1:3, 2:])
    assert not part.flags.writeable
    checkpoint.close()
    assert part[0, 0] == 6.0


def test_a_model_saved_by_transformers_in_shards_reads_back_bit_for_bit(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(tmp_path)
    state = model.state_dict()
    assert set(checkpoint.tensors()) == set(state)
    for name, values in state.items():
        read = checkpoint.read(name)
        assert read.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(read.view(np.int16), values.view(torch.int16).numpy())
    assert checkpoint.generation_config()["eos_token_id"] == config.eos_token_id


def test_float8_tensors_are_read(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    path = tmp_path / "x.safetensors"
    path.write_bytes(_safetensors(header, bytes([0x38, 0x40])))  # 1 and 2
    np.testing.assert_array_equal(SafetensorsFile(path).read("w").astype(np.float32), [1.0, 2.0])


def _entry(**changes: Any) -> bytes:
    return _safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}, bytes(8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header's length needs 8 bytes"),
        (struct.pack("<Q", 2**62) + b"{}", "the header needs"),
        (_safetensors(b"{nope"), "not JSON"),
        (_safetensors(b"[" * 100_000), "not JSON"),
        (_safetensors([1]), "not a JSON object"),
        (_safetensors({"w": 5}), "tensor 'w' has no proper dtype"),
        (_entry(dtype="F33"), "tensor 'w' has dtype 'F33'"),
        (_entry(dtype=["F32"]), "tensor 'w' has dtype"),
        (_entry(shape=[-2]), "non-negative"),
        (_entry(shape=[2.0]), "non-negative"),
        (_entry(shape=[True, 2]), "non-negative"),
        (_entry(data_offsets=[8, 0]), "ordered"),
        (_entry(data_offsets=[-8, 0]), "non-negative"),
        (_entry(shape=[3]), "takes 12 bytes but its data_offsets span 8"),
        (_entry(shape=[2**40, 2**40], data_offsets=[0, 2**82]), "tensor 'w' needs"),
        (_entry(data_offsets=[4, 12]), "tensor 'w' needs"),
        (
            _safetensors(
                {
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
                },
                bytes(6),
            ),
            "'a' and 'b' overlap",
        ),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = _directory(tmp_path) / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    directory = _directory(tmp_path_factory.mktemp("damaged"))
    save_file(STATE, directory / "model.safetensors")
    return directory, (directory / "model.safetensors").read_bytes()


@settings(max_examples=100)
@given(data=st.data())
def test_a_truncated_file_is_refused_wherever_it_ends(damaged: tuple[Path, bytes], data: st.DataObject) -> None:
    directory, content = damaged
    cut = data.draw(st.integers(0, len(content) - 1))
    (directory / "model.safetensors").write_bytes(content[:cut])
    with pytest.raises(CheckpointError):
        open_checkpoint(directory)


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_header_byte_opens_or_is_refused_but_never_crashes(
    damaged: tuple[Path, bytes], data: st.DataObject
) -> None:
    directory, content = damaged
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    (directory / "model.safetensors").write_bytes(flipped)
    try:
        checkpoint = open_checkpoint(directory)
    except CheckpointError:
        return
    for name in checkpoint.tensors():
        checkpoint.read(name)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "must hold an object"), ("\xff", "JSON")])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(_directory(tmp_path))


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (_directory(tmp_path) / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*convert to safetensors"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_neither_format_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"give the directory that holds config\.json"):
        open_checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="not a GGUF file: it starts with b'<htm'"):
        open_checkpoint(tmp_path / "x.gguf")


def test_two_gguf_files_in_a_directory_leave_the_choice_to_the_user(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a\.gguf, b\.gguf\); name one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 5])
def test_an_index_that_leads_out_of_the_directory_is_refused(tmp_path: Path, file: Any) -> None:
    index = {"weight_map": {"w": file}}
    (_directory(tmp_path / "model") / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(STATE, tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="which is not a file of its directory"):
        open_checkpoint(tmp_path / "model")


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    index = _directory(tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"scale": "one.safetensors", "w": "two.safetensors"}}))
    save_file(STATE, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors is missing"):
        open_checkpoint(tmp_path)
    save_file(STATE, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors lacks tensor 'w'"):
        open_checkpoint(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (_directory(tmp_path) / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_checkpoint(tmp_path)
