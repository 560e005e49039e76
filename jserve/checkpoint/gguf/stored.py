"""A tensor of a GGUF file: where it lies, and how any part of it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jserve.checkpoint.base import Index
from jserve.checkpoint.gguf.dequantize import BlockType, dequantize
from jserve.checkpoint.gguf.file import GgufFile, GgufTensor
from jserve.checkpoint.gguf.views import AsStored, HeadsTogether, RotatedInPairs, SomeHeads, View

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of Hugging Face's form, out of one of the file's."""

    file: GgufFile
    tensor: GgufTensor
    kind: BlockType
    view: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that `read` returns."""
        return self.kind.dtype or np.dtype(np.float32)

    @property
    def origin(self) -> Stored:
        return self

    def read(self, index: Index) -> Array:
        return self.view.read(self._read, self.tensor.shape, index)

    def read_blocks(self, rows: Index) -> Array:
        """u8[rows, blocks in a row, bytes in a block], in Hugging Face's order of rows; see `has_blocks`."""
        return self.view.read(lambda index: self.blocks()[index], self.tensor.shape, rows)

    def blocks(self) -> Array:
        """The tensor as it lies there: its values, or u8[..., blocks in a row, bytes in a block]."""
        tensor, kind = self.tensor, self.kind
        if kind.dtype is not None:
            shape, dtype = tensor.shape, kind.dtype
        else:
            shape, dtype = (
                (*tensor.shape[:-1], tensor.shape[-1] // kind.values, kind.size),
                np.dtype(np.uint8),
            )
        flat = np.frombuffer(self.file.file.buffer, dtype, math.prod(shape), tensor.offset)
        return flat.reshape(shape)

    def _read(self, index: tuple[Any, ...]) -> Array:
        """`index` may name rows by number in every axis but the last."""
        raw, kind = self.blocks(), self.kind
        if kind.dtype is not None:
            part: Array = raw[index]
            return part
        axes = len(self.tensor.shape)
        full = (*index, *[slice(None)] * (axes - len(index)))
        first, stop, cut = _block_range(full[-1], self.tensor.shape[-1], kind)
        blocks = raw[(*full[:-1], slice(first, stop))]
        values = dequantize(blocks.reshape(-1, kind.size), kind)
        return values.reshape(*blocks.shape[:-2], (stop - first) * kind.values)[..., cut]


def has_blocks(stored: Any) -> bool:
    """Whether a tensor of Hugging Face's form has the file's blocks, in rows of any order."""
    by_rows = (AsStored, RotatedInPairs, HeadsTogether, SomeHeads)
    return isinstance(stored, Stored) and stored.kind.dtype is None and isinstance(stored.view, by_rows)


def _block_range(part: Any, length: int, kind: BlockType) -> tuple[int, int, slice]:
    """The blocks of a row that hold `part` of its values, and where in them those values lie."""
    assert isinstance(part, slice), "only rows are chosen by number"
    start, stop, step = part.indices(length)
    if step != 1:
        return 0, length // kind.values, part
    first = min(start, stop) // kind.values
    return (
        first,
        math.ceil(stop / kind.values),
        slice(start - first * kind.values, stop - first * kind.values),
    )
