"""Where a parameter comes from in a checkpoint, and how any slice of it is read.

A source is a hashable value in the parameter's metadata. `read` touches only the bytes of the slice
that is wanted, so each device reads its own share. Nothing here is a weight map: names are those of the
checkpoint, relative to the module that owns the parameter ("../" climbs to its owner).
"""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ReadTensor = Callable[[str, tuple[slice, ...]], np.ndarray]
"""Reads a slice of a tensor of the checkpoint by its name relative to the module."""

Index = tuple[slice, ...]


class Source(Protocol):
    """How to assemble a parameter."""

    def names(self) -> dict[str, tuple[int, ...]]:
        """Tensors that must exist, with the shape each must have."""
        ...

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        """The slice `index` of the parameter; every slice has explicit bounds and step 1."""
        ...


def absolute_name(module: tuple[str, ...], name: str) -> str:
    """The checkpoint's name for a name relative to `module`."""
    while name.startswith("../"):
        module, name = module[:-1], name[3:]
    return ".".join((*module, name))


def spellings(name: str) -> Iterator[str]:
    """A name as it is, and with the prefixes that repositories drop or add."""
    bare = name
    for prefix in ("model.", "transformer.", "gpt_neox.", "backbone."):
        bare = bare.removeprefix(prefix)
    yield from (name, bare, f"language_model.{name}", f"model.language_model.{bare}")
    yield from (f"{prefix}.{name}" for prefix in _ENCODER_PREFIXES)


_ENCODER_PREFIXES = ("bert", "roberta", "model", "nomic_bert", "gte")
"""What stands before the names of an encoder under a head."""


ALIGNMENT = 64
"""Bytes. jax takes a numpy array that begins at a multiple as its own on a CPU; others it copies."""
MAPPED = 1 << 20
"""Bytes from which on an array has pages of its own."""


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`np.empty` that jax need not copy.

    Where it is large it is mapped, in pages of the usual size: for huge ones, which numpy asks for, the kernel may have
    to move others first, and took four times as long in a virtual machine.
    """
    size = math.prod(shape) * dtype.itemsize
    if size >= MAPPED and hasattr(mmap, "MAP_PRIVATE"):
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(pages, dtype).reshape(shape)
    room = np.empty(size + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + size].view(dtype).reshape(shape)


def join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """`np.concatenate`, at the speed of a plain copy for every type, in memory that jax need not copy.

    Parts in several types become float32: files have query, key and value in float16 and bfloat16 side by side.
    """
    dtype = parts[0].dtype
    if any(part.dtype != dtype for part in parts):
        parts, dtype = [part.astype(np.float32) for part in parts], np.dtype(np.float32)
    known = [as_known(part) for part in parts]
    shape = list(known[0].shape)
    shape[axis] = sum(part.shape[axis] for part in known)
    return np.concatenate(known, axis, out=aligned_empty((*shape,), known[0].dtype)).view(dtype)


def as_known(data: np.ndarray) -> np.ndarray:
    """bfloat16 and float8 as integers: numpy copies types of others one by one, holding the GIL."""
    return data if data.dtype.isbuiltin == 1 else data.view(f"u{data.dtype.itemsize}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the checkpoint as it is. `rows` above the tensor's own are zeros (padding)."""

    name: str
    shape: tuple[int, ...]

    def names(self) -> dict[str, tuple[int, ...]]:
        return {self.name: self.shape}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        first = index[0]
        stop = min(first.stop, self.shape[0])
        start = min(first.start, stop)
        data = read(self.name, (slice(start, stop), *index[1:]))
        missing = (first.stop - first.start) - (stop - start)
        if not missing:
            return data
        return join([data, np.zeros((missing, *data.shape[1:]), data.dtype)], axis=0)


@dataclass(frozen=True, slots=True)
class InputsFirst:
    """Another source with its last axis, the inputs of a product, moved to the front."""

    source: Source

    def names(self) -> dict[str, tuple[int, ...]]:
        return self.source.names()

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        return np.moveaxis(self.source.read(read, (*index[1:], index[0])), -1, 0)


@dataclass(frozen=True, slots=True)
class Stacked:
    """Tensors of one shape along a new first axis: `[len(names), *shape]`."""

    tensors: tuple[str, ...]
    shape: tuple[int, ...]

    def names(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.tensors, self.shape)

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        chosen = self.tensors[index[0]]
        return join([read(name, index[1:])[np.newaxis] for name in chosen], axis=0)


@dataclass(frozen=True, slots=True)
class GroupedHeads:
    """Query, key and value projections interleaved by KV head: `[K, G + 2, D, ...]`.

    Entry k holds the G query heads that KV head k serves, then its key, then its value, so that sharding
    the first axis gives each device whole groups. Where there are more devices than KV heads, `copies`
    of each KV head exist, each with its share of the query heads: K is then `num_kv_heads * copies`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    suffix: str = "weight"
    inner: tuple[int, ...] = ()
    copies: int = 1
    others: tuple[str, ...] = ("k", "v")
    """What lies beside a KV head's queries: keys and values, in some layers keys alone, or nothing."""

    @property
    def groups(self) -> int:
        return self.num_heads // (self.num_kv_heads * self.copies)

    def names(self) -> dict[str, tuple[int, ...]]:
        kv = (self.num_kv_heads * self.head_dim, *self.inner)
        return {
            f"../q_proj.{self.suffix}": (self.num_heads * self.head_dim, *self.inner),
            **{f"../{other}_proj.{self.suffix}": kv for other in self.others},
        }

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        first, rest = index[0], index[3:]
        heads = range(first.start, first.stop)
        dim, groups = self.head_dim, self.groups
        query = read(f"../q_proj.{self.suffix}", (slice(heads.start * groups * dim, heads.stop * groups * dim), *rest))
        query = query.reshape(len(heads), groups, dim, *query.shape[1:])
        others = [self._kv_heads(read, f"../{other}_proj", heads, rest) for other in self.others]
        whole = join([query, *others], axis=1)
        return whole[:, index[1], index[2]]

    def _kv_heads(self, read: ReadTensor, name: str, heads: range, rest: Index) -> np.ndarray:
        low, high = heads.start // self.copies, (heads.stop - 1) // self.copies + 1
        dim = self.head_dim
        data = read(f"{name}.{self.suffix}", (slice(low * dim, high * dim), *rest))
        data = data.reshape(high - low, 1, dim, *data.shape[1:])
        return data if self.copies == 1 else data[[head // self.copies - low for head in heads]]
