"""Split GGUF files: any part stands for all, and parts that do not belong together are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jserve.checkpoint import find_gguf, open_checkpoint
from jserve.errors import CheckpointError
from tests.checkpoint.gguf.maker import CONFIG, tiny_state, write_gguf


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf(tmp_path / "m.gguf", tiny_state(), CONFIG, split_max_tensors=9)
    return sorted(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_stands_for_all(parts: list[Path], part: int) -> None:
    assert [path.name for path in parts] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    checkpoint = open_checkpoint(parts[part])
    assert checkpoint.path == parts[0]
    state = tiny_state()
    assert set(checkpoint.tensors()) == set(state)
    for name, values in state.items():
        np.testing.assert_array_equal(checkpoint.read(name), values)
    assert {info.file for info in checkpoint.tensors().values()} == set(parts)


def test_directory_of_parts_is_one_model(parts: list[Path]) -> None:
    assert find_gguf(parts[0].parent) == parts[0]
    shutil.copy(parts[0], parts[0].with_name("other.gguf"))
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        find_gguf(parts[0].parent)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_part_that_is_missing_is_named(parts: list[Path], gone: int) -> None:
    parts[gone].unlink()
    with pytest.raises(CheckpointError, match=rf"m-0000{gone + 1}-of-00003.gguf is missing"):
        open_checkpoint(parts[1 if gone == 2 else 2])


def test_part_that_is_another_is_refused(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CheckpointError, match=r"says that it is part 1 of 3, counted from 0, but its name"):
        open_checkpoint(parts[0])
    shutil.copy(parts[0], parts[1])  # a file whose next part is itself
    with pytest.raises(CheckpointError, match=r"says that it is part 0 of 3"):
        open_checkpoint(parts[0])


def test_parts_that_lost_their_names_are_refused(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("first.gguf"))
    with pytest.raises(CheckpointError, match=r"give them the names that they came with, such as first-00001-of-00003"):
        open_checkpoint(renamed)


def test_parts_of_another_model_are_refused(parts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    state = tiny_state()
    last = list(state)[-1]
    write_gguf(other / "m.gguf", {name: state[name] for name in state if name != last}, CONFIG, split_max_tensors=9)
    shutil.copy(other / parts[2].name, parts[2])
    with pytest.raises(CheckpointError, match=r"says 21 tensors but its 3 parts have 20"):
        open_checkpoint(parts[0])
