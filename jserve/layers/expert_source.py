"""Where the weights of a mixture's experts come from: one tensor for each expert, or one of all of them.

All give `[X, inputs, outputs]`, or `[X, inputs, 2, outputs]` for gate and up together, and read only the experts,
the inputs and the outputs of the slice that is read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jserve.layers.source import Index, ReadTensor, Source, join


@dataclass(frozen=True, slots=True)
class FirstFound:
    """Several ways in which checkpoints keep the same parameter: the first whose tensors are all there is meant."""

    ways: tuple[Source, ...]

    def names(self) -> dict[str, tuple[int, ...]]:
        return self.ways[0].names()

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        return self.ways[0].read(read, index)


@dataclass(frozen=True, slots=True)
class OutputsFirst:
    """Another source with the inputs last, as quantized experts lie."""

    source: Source

    def names(self) -> dict[str, tuple[int, ...]]:
        return self.source.names()

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        experts, *outputs, inputs = index
        return np.moveaxis(self.source.read(read, (experts, inputs, *outputs)), 1, -1)


@dataclass(frozen=True, slots=True)
class EachExpert:
    """`[outputs, inputs]` of each expert, as most checkpoints have it: `prefix`, its number, "." and a suffix."""

    count: int
    suffixes: tuple[str, ...]
    shape: tuple[int, int]
    prefix: str = ""

    def names(self) -> dict[str, tuple[int, ...]]:
        names = (f"{self.prefix}{expert}.{suffix}" for expert in range(self.count) for suffix in self.suffixes)
        return dict.fromkeys(names, self.shape)

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        experts, inputs, *pair, outputs = index
        chosen = self.suffixes[pair[0]] if pair else self.suffixes
        parts = [
            read(f"{self.prefix}{expert}.{suffix}", (outputs, inputs))[np.newaxis]
            for expert in range(experts.start, experts.stop)
            for suffix in chosen
        ]
        stack = join(parts, axis=0).reshape(-1, len(chosen), *parts[0].shape[1:])
        return np.moveaxis(stack if pair else stack[:, 0], -1, 1)


@dataclass(frozen=True, slots=True)
class AllExperts:
    """One tensor of all experts: `[X, outputs, inputs]`, or with `inputs_first` `[X, inputs, outputs]`.

    Gate and up share its outputs (`parts` is 2): the gate's first, or where they are `interleaved` in turn.
    """

    name: str
    count: int
    outputs: int
    """The number of the gate's outputs, where up is beside it."""
    inputs: int
    parts: int = 1
    inputs_first: bool = False
    interleaved: bool = False

    def names(self) -> dict[str, tuple[int, ...]]:
        sizes = (self.parts * self.outputs, self.inputs)
        return {self.name: (self.count, *(sizes[::-1] if self.inputs_first else sizes))}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        experts, inputs, *pair, outputs = index

        def rows(wanted: slice) -> np.ndarray:
            """[experts, inputs, outputs]"""
            if self.inputs_first:
                return read(self.name, (experts, inputs, wanted))
            return np.moveaxis(read(self.name, (experts, wanted, inputs)), 1, -1)

        return split_outputs(rows, outputs, pair, self.outputs, interleaved=self.interleaved)


@dataclass(frozen=True, slots=True)
class AllBiases:
    """`[X, outputs]` of all experts in one tensor; with `parts` 2 that of gate and up, `[X, 2, outputs]`."""

    name: str
    count: int
    outputs: int
    parts: int = 1
    interleaved: bool = False

    def names(self) -> dict[str, tuple[int, ...]]:
        return {self.name: (self.count, self.parts * self.outputs)}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        experts, *pair, outputs = index
        return split_outputs(
            lambda wanted: read(self.name, (experts, wanted)), outputs, pair, self.outputs, interleaved=self.interleaved
        )


def split_outputs(
    read_outputs: Callable[[slice], np.ndarray], outputs: slice, pair: list[slice], size: int, *, interleaved: bool
) -> np.ndarray:
    """What `read_outputs` gives along its last axis, or `[..., pair, outputs]` where gate and up share that axis."""
    if not pair:
        return read_outputs(outputs)
    if interleaved:
        both = read_outputs(slice(2 * outputs.start, 2 * outputs.stop))
        return np.moveaxis(both.reshape(*both.shape[:-1], -1, 2), -1, -2)[..., pair[0], :]
    starts = [size * half for half in range(2)[pair[0]]]
    parts = [read_outputs(slice(start + outputs.start, start + outputs.stop)) for start in starts]
    return join([part[..., np.newaxis, :] for part in parts], axis=parts[0].ndim - 1)
