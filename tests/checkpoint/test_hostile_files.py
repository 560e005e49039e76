"""What a hostile header or file gets: one error, at once, and nothing of what it claims is allocated."""

import json
import os
import struct
from pathlib import Path

import pytest

from jserve.checkpoint import open_checkpoint
from jserve.checkpoint.gguf import file as gguf_file
from jserve.checkpoint.gguf.file import GgufFile
from jserve.checkpoint.json_file import read_json
from jserve.checkpoint.safetensors_file import SafetensorsFile
from jserve.errors import CheckpointError


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[" * 10**6, '{"a": "\xff"}', "[]"])
def test_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError):
        read_json(tmp_path / "config.json")


def test_file_above_its_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="is larger than"):
        read_json(tmp_path / "config.json", limit=1000)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path, needs_weights=False)
    with pytest.raises(CheckpointError, match="not a regular file"):
        GgufFile(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ('{"x": {}, "x": {}}', "stands there twice"),
        (json.dumps({"x": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}), "claims 9 axes"),
    ],
)
def test_safetensors_header_is_held_to_its_form(tmp_path: Path, header: str, said: str) -> None:
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    with pytest.raises(CheckpointError, match=said):
        SafetensorsFile(tmp_path / "m")


@pytest.mark.parametrize("kind", [0, 8])
def test_gguf_array_within_a_large_file_is_still_bounded(tmp_path: Path, kind: int) -> None:
    count = gguf_file._MAX_ITEMS + 1
    pair = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, count)
    with (tmp_path / "m.gguf").open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
        stream.truncate(1 << 34)
    with pytest.raises(CheckpointError, match="at most 16,777,216 items"):
        GgufFile(tmp_path / "m.gguf")
