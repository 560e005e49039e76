"""Damaged and hostile GGUF files: one clear error, at once, without the memory that a header claims."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve.checkpoint import open_checkpoint
from jserve.errors import CheckpointError
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def content(folder: Path) -> bytes:
    metadata = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 3]}
    return write_gguf(folder / "whole.gguf", tiny_state(), CONFIG, metadata=metadata).read_bytes()


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _preamble(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def _tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


LLAMA = _string("general.architecture") + struct.pack("<I", 8) + _string("llama")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "version needs 4 bytes"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (_preamble(0, 0, version=1), "GGUF version 1"),
        (_preamble(2**60, 0), "a table of 1,152,921,504,606,846,976 tensors"),
        (_preamble(0, 2**60), "metadata keys needs"),
        (_preamble(0, 1) + struct.pack("<Q", 2**50) + bytes(64), "metadata key 0 needs"),
        (_preamble(0, 1) + _string("k") + struct.pack("<I", 99), "unknown type 99"),
        (_preamble(0, 1) + _string("k") + struct.pack("<IIQ", 9, 4, 2**61), "'k' needs"),
        (_preamble(0, 1) + _string("k") + struct.pack("<IIQ", 9, 8, 2**61), "'k' needs"),
        (_preamble(0, 1) + _string("k") + struct.pack("<IIQ", 9, 9, 2**61), "'k' needs"),
        (
            _preamble(0, 1) + _string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 200,
            "unknown type 9",
        ),
        (_preamble(0, 2) + LLAMA + LLAMA, "stands there twice"),
        (
            _preamble(0, 1) + _string("k") + struct.pack("<I", 8) + struct.pack("<Q", 2) + b"\xff\xff",
            "not UTF-8",
        ),
        (_preamble(0, 0), "architecture None"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [2**40, 2**40]), "'output.weight' needs"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [32, 1], offset=2**62), "'output.weight' needs"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [32, 1], offset=7), "not a multiple of 32"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [31, 1], kind=3), "not whole Q4_1 blocks"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [0, 5]), "empty"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", []), "empty"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [1] * 5), "claims 5 dimensions"),
        (_preamble(1, 1) + LLAMA + _tensor("output.weight", [32, 1], kind=77), "unsupported GGML type 77"),
        (_preamble(2, 1) + LLAMA + _tensor("a.weight", [1]) * 2, "two tensors have the same name"),
        (_preamble(0, 1) + LLAMA, "llama.attention.head_count is None"),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@settings(max_examples=150)
@given(data=st.data())
def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path, content: bytes, data: st.DataObject) -> None:
    path = folder / "short.gguf"
    # The file ends with padding of the last tensor, which may be missing.
    path.write_bytes(content[: data.draw(st.integers(4, len(content) - 64))])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_header_byte_opens_or_is_refused_but_never_crashes(
    folder: Path, content: bytes, data: st.DataObject
) -> None:
    path = folder / "flipped.gguf"
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(4, 2800))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    for name in checkpoint.tensors():
        checkpoint.read(name)
