"""Sources for checkpoints that keep several projections in one tensor, or a product's weight inputs first.

As in `source.py`, each reads only the slice that is wanted.
"""

import math
from dataclasses import dataclass

import numpy as np

from jserve.layers.source import Index, ReadTensor, Source, join


@dataclass(frozen=True, slots=True)
class Fused:
    """Another source whose tensors lie below one another, in their order, in the rows of the tensor `name`."""

    source: Source
    name: str

    def names(self) -> dict[str, tuple[int, ...]]:
        shapes = list(self.source.names().values())
        return {self.name: (sum(shape[0] for shape in shapes), *shapes[0][1:])}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        first, starts = 0, {}
        for part, shape in self.source.names().items():
            starts[part], first = first, first + shape[0]

        def read_part(part: str, index: Index) -> np.ndarray:
            rows = slice(index[0].start + starts[part], index[0].stop + starts[part])
            return read(self.name, (rows, *index[1:]))

        return self.source.read(read_part, index)


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of the tensor `name`, `[axes[0] * axes[1] * ..., *inner]`, as `[*axes, *inner]`."""

    name: str
    axes: tuple[int, ...]
    inner: tuple[int, ...] = ()

    def names(self) -> dict[str, tuple[int, ...]]:
        return {self.name: (math.prod(self.axes), *self.inner)}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        rows, rest = index[: len(self.axes)], index[len(self.axes) :]
        block = math.prod(self.axes[1:])
        data = read(self.name, (slice(rows[0].start * block, rows[0].stop * block), *rest))
        return data.reshape(-1, *self.axes[1:], *data.shape[1:])[:, *rows[1:]]


@dataclass(frozen=True, slots=True)
class HeadParts:
    """The rows of the tensor `name`, first those of one part of all heads and then of the next, as `[heads, sum(sizes),
    *inner]`: `sizes` are the rows of a head in each part. Of the parts in `shared`, `copies` neighbouring heads have
    the same rows, which are there once.
    """

    name: str
    heads: int
    sizes: tuple[int, ...]
    inner: tuple[int, ...] = ()
    shared: frozenset[int] = frozenset()
    copies: int = 1

    def names(self) -> dict[str, tuple[int, ...]]:
        rows = sum(size * self.heads // self._copies(part) for part, size in enumerate(self.sizes))
        return {self.name: (rows, *self.inner)}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        heads, rest, first, parts = range(index[0].start, index[0].stop), index[2:], 0, []
        for part, size in enumerate(self.sizes):
            copies = self._copies(part)
            low, high = heads.start // copies, (heads.stop - 1) // copies + 1
            data = read(self.name, (slice(first + low * size, first + high * size), *rest))
            data = data.reshape(high - low, size, *data.shape[1:])
            parts.append(data if copies == 1 else data[[head // copies - low for head in heads]])
            first += self.heads // copies * size
        return join(parts, axis=1)[:, index[1]]

    def _copies(self, part: int) -> int:
        return self.copies if part in self.shared else 1


@dataclass(frozen=True, slots=True)
class Part:
    """Some of another source along its second axis, from `start` on: of what a tensor holds of each head."""

    source: Source
    start: int

    def names(self) -> dict[str, tuple[int, ...]]:
        return self.source.names()

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        second = slice(index[1].start + self.start, index[1].stop + self.start)
        return self.source.read(read, (index[0], second, *index[2:]))


@dataclass(frozen=True, slots=True)
class Transposed:
    """Another source of matrices, whose tensors of two axes the checkpoint keeps the other way round."""

    source: Source

    def names(self) -> dict[str, tuple[int, ...]]:
        return {name: shape[::-1] for name, shape in self.source.names().items()}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        return self.source.read(lambda name, index: read(name, index[::-1]).T, index)


@dataclass(frozen=True, slots=True)
class CopiedHeads:
    """The tensor `name`, `[heads * head_dim]`, as `[heads * copies, head_dim]`: each head so often in a row.

    Where it is not flat, the tensor is `[heads, head_dim]`.
    """

    name: str
    heads: int
    head_dim: int
    copies: int
    is_flat: bool = True

    def names(self) -> dict[str, tuple[int, ...]]:
        return {self.name: (self.heads * self.head_dim,) if self.is_flat else (self.heads, self.head_dim)}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        heads = (copy // self.copies for copy in range(index[0].start, index[0].stop))
        size = self.head_dim
        if self.is_flat:
            rows = [read(self.name, (slice(head * size, (head + 1) * size),)) for head in heads]
        else:
            rows = [read(self.name, (slice(head, head + 1), slice(0, size)))[0] for head in heads]
        return join([row[np.newaxis, index[1]] for row in rows], axis=0)
