"""What of a mapped file is read ahead."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jserve.checkpoint import mapped_file
from jserve.checkpoint.safetensors_file import SafetensorsFile


def test_a_slice_has_its_own_rows_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(64 * 4096, dtype=np.float32).reshape(64, 4096)
    save_file({"weight": values}, tmp_path / "one.safetensors")
    requested: list[tuple[int, int]] = []

    class Recording(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0, /, *rest: Any) -> None:
            assert option == mmap.MADV_WILLNEED
            requested.append((start, start + length))
            super().madvise(option, start, length)

    monkeypatch.setattr(mapped_file.mmap, "mmap", Recording)
    file = SafetensorsFile(tmp_path / "one.safetensors")
    data = (tmp_path / "one.safetensors").stat().st_size - values.nbytes
    row = values.nbytes // 64
    np.testing.assert_array_equal(file.read("weight", (slice(8, 16),)), values[8:16])
    np.testing.assert_array_equal(file.read("weight", (slice(63, None, -3),)), values[::-3][:22])
    (begin, end), (low, high) = requested
    assert data + 8 * row - mmap.PAGESIZE < begin <= data + 8 * row
    assert end == data + 16 * row
    assert low <= data
    assert high == data + 64 * row
