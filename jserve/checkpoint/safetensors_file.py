"""One safetensors file: an 8-byte length, a JSON header, then the tensors' bytes.

Every number in the header is checked before it is used. Tensors are numpy views of the mapped file, bfloat16
and float8 among them (through ml_dtypes), so reading a slice touches only that slice.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.mapped_file import MappedFile
from jserve.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

MAX_AXES = 8

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class SafetensorsFile:
    """`infos` by name; `read` gives views. Raises CheckpointError where the header does not hold together."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            header, self._data_start = self._read_header()
            self._starts: dict[str, int] = {}
            self.infos: dict[str, TensorInfo] = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    self._add(name, entry)
            self._check_overlaps()
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        """A read-only view of the tensor or of a part of it."""
        info = self.infos[name]
        count = math.prod(info.shape)
        dtype = DTYPES[info.stored]
        if count == 0:
            return np.empty(info.shape, dtype)[index]
        flat = np.frombuffer(self._file.buffer, dtype, count, self._starts[name])
        rows = range(*index[0].indices(info.shape[0])) if index else range(0)
        if rows:
            row = self._size(name) // info.shape[0]
            self._file.will_need(self._starts[name] + min(rows) * row, len(rows) * abs(rows.step) * row)
        return flat.reshape(info.shape)[index]

    def close(self) -> None:
        self._file.close()

    def _read_header(self) -> tuple[dict[str, Any], int]:
        path = self._file.path
        self._file.require(0, 8, "the header's length")
        (length,) = struct.unpack("<Q", self._file.slice(0, 8))
        if length > MAX_HEADER_BYTES and length <= self._file.size:
            raise CheckpointError(f"{path}: its header claims {length:,} bytes, more than safetensors allows")
        self._file.require(8, length, "the header")
        try:
            header = json.loads(self._file.slice(8, 8 + length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is not JSON ({error}); fetch the file again") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: its header is not a JSON object; fetch the file again")
        return header, 8 + length

    def _add(self, name: str, entry: Any) -> None:
        path = self._file.path
        try:
            stored, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{path}: tensor {name!r} has no proper dtype, shape and data_offsets in the header"
            ) from None
        dtype = DTYPES.get(stored) if isinstance(stored, str) else None
        if dtype is None:
            raise CheckpointError(f"{path}: tensor {name!r} has dtype {stored!r}; supported are {', '.join(DTYPES)}")
        if len(shape) > MAX_AXES:
            raise CheckpointError(f"{path}: tensor {name!r} claims {len(shape):,} axes; at most {MAX_AXES} are read")
        if not all(type(value) is int and value >= 0 for value in (*shape, start, stop)) or start > stop:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(shape)} and data_offsets [{start}, {stop}], "
                "which are not whole, ordered, non-negative numbers"
            )
        size = math.prod(shape) * dtype.itemsize
        if size != stop - start:
            raise CheckpointError(
                f"{path}: tensor {name!r} of shape {list(shape)} and dtype {stored} takes {size:,} bytes "
                f"but its data_offsets span {stop - start:,}"
            )
        self._file.require(self._data_start + start, size, f"tensor {name!r}")
        self._starts[name] = self._data_start + start
        self.infos[name] = TensorInfo(shape, dtype.name, path, stored)

    def _check_overlaps(self) -> None:
        end, last = 0, ""
        for name in sorted(self._starts, key=lambda name: (self._starts[name], self._size(name))):
            if self._starts[name] < end:
                raise CheckpointError(f"{self._file.path}: tensors {last!r} and {name!r} overlap")
            end, last = self._starts[name] + self._size(name), name

    def _size(self, name: str) -> int:
        info = self.infos[name]
        return math.prod(info.shape) * DTYPES[info.stored].itemsize


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names must differ: of two tensors of one name the last would win silently."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands there twice")
    return fields
