"""How a tensor of a GGUF file is read where llama.cpp keeps it in another form than Hugging Face.

A view is asked for a part of the Hugging Face tensor, and reads only what it needs of the stored one. Sources: the
`modify_tensors` of llama.cpp's converter, read backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jserve.checkpoint.base import Index

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Read = Callable[[tuple[Any, ...]], Array]
"""Reads a part of the stored tensor: numbers and arrays of numbers may index every axis but the last."""


class View(Protocol):
    """A tensor of Hugging Face's form out of one of llama.cpp's."""

    def shape(self, stored: Shape) -> Shape: ...
    def read(self, read: Read, stored: Shape, index: Index) -> Array: ...


@dataclass(frozen=True, slots=True)
class AsStored:
    """The tensor as it is."""

    def shape(self, stored: Shape) -> Shape:
        return stored

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        return read(index)


@dataclass(frozen=True, slots=True)
class RotatedInPairs:
    """Rows of queries or keys, which llama.cpp orders so that neighbours are a pair of the rotary embedding.

    Hugging Face pairs the two halves of a head (`LlamaModel.permute`).
    """

    heads: int

    def shape(self, stored: Shape) -> Shape:
        return stored

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        order = np.arange(stored[0]).reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)
        return _read_rows(read, stored, order, index)


@dataclass(frozen=True, slots=True)
class HeadsTogether:
    """All queries, then all keys, then all values; Hugging Face has those of each head together (GPT-NeoX)."""

    heads: int

    def shape(self, stored: Shape) -> Shape:
        return stored

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        order = np.arange(stored[0]).reshape(3, self.heads, -1).swapaxes(0, 1).reshape(-1)
        return _read_rows(read, stored, order, index)


@dataclass(frozen=True, slots=True)
class SomeHeads:
    """Rows of some neighbouring heads out of a tensor of `heads`: queries, keys or values out of all of them."""

    heads: int
    first: int
    count: int

    def _rows(self, stored: Shape) -> range:
        size = stored[0] // self.heads
        return range(self.first * size, (self.first + self.count) * size)

    def shape(self, stored: Shape) -> Shape:
        return (len(self._rows(stored)), *stored[1:])

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        rows = self._rows(stored)
        wanted = rows[index[0]] if index else rows
        return read((slice(wanted.start, wanted.stop), *index[1:]))


@dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix that Hugging Face keeps the other way round (GPT-2)."""

    def shape(self, stored: Shape) -> Shape:
        return stored[::-1]

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        rows, columns = (*index, *[slice(None)] * (2 - len(index)))
        return read((columns, rows)).T


@dataclass(frozen=True, slots=True)
class OneLess:
    """A norm's weight that is applied as it is; Hugging Face adds 1 to it (Gemma)."""

    def shape(self, stored: Shape) -> Shape:
        return stored

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        return np.subtract(read(index), np.float32(1))


@dataclass(frozen=True, slots=True)
class OneRow:
    """A vector that is a matrix of one row; some converters wrote the row."""

    def shape(self, stored: Shape) -> Shape:
        return stored if len(stored) == 2 else (1, *stored)

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        return read(index) if len(stored) == 2 else read(index[1:])[np.newaxis][index[:1]]


@dataclass(frozen=True, slots=True)
class OneExpert:
    """One of a layer's experts out of the tensor of all of them."""

    number: int

    def shape(self, stored: Shape) -> Shape:
        return stored[1:]

    def read(self, read: Read, stored: Shape, index: Index) -> Array:
        return read((self.number, *index))


def _read_rows(read: Read, stored: Shape, order: Array, index: Index) -> Array:
    """Row r of the result is row `order[r]` of the file."""
    rows = order[index[0]] if index else order
    if len(stored) == 1:
        return read(())[rows]
    return read((rows, *index[1:]))
