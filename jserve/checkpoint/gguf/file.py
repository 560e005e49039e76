"""The GGUF container: metadata and the table of tensors, read with `struct` and checked against the file.

The `gguf` package's own reader makes a numpy array of every token (1.9 s for a vocabulary of 49,152 where
this takes 0.1 s) and trusts its counts. Needs no numpy, so the API process reads a tokenizer with it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jserve.checkpoint.mapped_file import MappedFile
from jserve.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata value types with a fixed width, as `struct` codes."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_NESTING = 4
_MAX_HEADER = 256 << 20
"""Bytes before the tensors. A vocabulary of 262,144 tokens with its merges takes some 10 MB."""
_MAX_ITEMS = 1 << 24
"""Entries of one array of the metadata; as Python's objects each takes tens of bytes."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A row of the tensor table. `shape` is in numpy's order; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


class GgufFile:
    """Metadata as Python values, tensors by GGUF name. Raises CheckpointError where the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = MappedFile(path)
        try:
            cursor = _Cursor(self.file)
            tensor_count, metadata_count = _read_preamble(cursor)
            self.metadata: Mapping[str, Any] = _read_metadata(cursor, metadata_count)
            self.tensors: Mapping[str, GgufTensor] = _read_table(cursor, tensor_count, self._alignment())
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        self.file.close()

    def _alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r} but must be a power of two")
        return alignment


class _Cursor:
    """Reads forward through a mapped file; every read is checked against its end."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.position = 0

    def numbers(self, code: str, count: int, what: str) -> tuple[Any, ...]:
        """`count` little-endian numbers of the `struct` code."""
        size = count * struct.calcsize("<" + code)
        self._check(count, size, what)
        values = struct.unpack_from(f"<{count}{code}", self.file.buffer, self.position)
        self.position += size
        return values

    def number(self, code: str, what: str) -> Any:
        return self.numbers(code, 1, what)[0]

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings, each with its length in front. The loop is flat: vocabularies have 100,000s."""
        buffer, size, position = self.file.buffer, self.file.size, self.position
        self._check(count, 8 * count, what)
        unpack = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            start = position + 8
            if start > size or (position := start + unpack(buffer, start - 8)[0]) > size:
                self.file.require(start, size, what)
            if position > _MAX_HEADER:
                self._check(count, position - self.position, what)
            texts.append(buffer[start:position])
        self.position = position
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file.path}: {what} is not UTF-8 ({error}); the file is damaged") from None

    def _check(self, count: int, size: int, what: str) -> None:
        """Raise CheckpointError unless so many bytes are there, and are no more than a header has."""
        self.file.require(self.position, size, what)
        if count > _MAX_ITEMS or self.position + size > _MAX_HEADER:
            raise CheckpointError(
                f"{self.file.path}: {what} claims {count:,} items in {size:,} bytes; at most {_MAX_ITEMS:,} items, and "
                f"{_MAX_HEADER:,} bytes before the tensors, are read"
            )


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    path = cursor.file.path
    magic = cursor.file.slice(0, 4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file: it starts with {magic!r}")
    cursor.position = 4
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{path} is a big-endian GGUF file; only little-endian files are supported")
    if version not in _VERSIONS:
        raise CheckpointError(f"{path} is GGUF version {version}; supported are {_VERSIONS[0]} and {_VERSIONS[1]}")
    tensors, metadata = cursor.numbers("Q", 2, "the counts")
    # The least a table row and a metadata pair can take, so that a wild count fails here and at once.
    cursor.file.require(cursor.position, 24 * tensors, f"a table of {tensors:,} tensors")
    cursor.file.require(cursor.position, 13 * metadata, f"a table of {metadata:,} metadata keys")
    return tensors, metadata


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = cursor.string(f"metadata key {number}")
        if key in metadata:
            raise CheckpointError(f"{cursor.file.path}: metadata key {key!r} stands there twice; the file is damaged")
        metadata[key] = _read_value(cursor, cursor.number("I", key), key, depth=0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    what = f"metadata key {key!r}"
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], what)
    if kind == _STRING:
        return cursor.string(what)
    if kind != _ARRAY or depth > _MAX_NESTING:
        raise CheckpointError(f"{cursor.file.path}: {what} has the unknown type {kind}; the file is damaged")
    element = cursor.number("I", what)
    length = cursor.number("Q", what)
    if element in _SCALARS:
        return list(cursor.numbers(_SCALARS[element], length, what))
    if element == _STRING:
        return cursor.strings(length, what)
    cursor.file.require(cursor.position, 12 * length, what)
    return [_read_value(cursor, element, key, depth + 1) for _ in range(length)]


def _read_table(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    path = cursor.file.path
    rows: list[GgufTensor] = []
    for number in range(count):
        name = cursor.string(f"the name of tensor {number}")
        dims = cursor.number("I", f"tensor {name!r}")
        if dims > _MAX_DIMS:
            raise CheckpointError(f"{path}: tensor {name!r} claims {dims} dimensions; GGUF allows {_MAX_DIMS}")
        # ggml writes the fastest-moving dimension first.
        shape = tuple(reversed(cursor.numbers("Q", dims, f"tensor {name!r}")))
        type_id, offset = cursor.number("I", f"tensor {name!r}"), cursor.number("Q", f"tensor {name!r}")
        if offset % alignment:
            raise CheckpointError(f"{path}: tensor {name!r} lies at {offset}, which is not a multiple of {alignment}")
        rows.append(GgufTensor(name, shape, type_id, offset))
    start = math.ceil(cursor.position / alignment) * alignment
    table = {row.name: GgufTensor(row.name, row.shape, row.type_id, start + row.offset) for row in rows}
    if len(table) < len(rows):
        raise CheckpointError(f"{path}: two tensors have the same name; the file is damaged")
    return table
