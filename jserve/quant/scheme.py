"""What a format is: which modules it covers, what each of their weights needs of the checkpoint, and how the
arrays of a `QuantizedWeight` are read from that. Works on the host, in numpy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jserve.errors import CheckpointError
from jserve.quant.weight import Layout

Array = np.ndarray[Any, Any]
Index = tuple[slice, ...]
Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""
Read = Callable[[str, Index], Array]
"""Reads a slice of a tensor of the checkpoint by its name relative to the module."""


class Source(Protocol):
    """`jserve.layers.source.Source`: assembles a parameter `[*outputs, inputs]` from tensors `[rows, inputs]`."""

    def names(self) -> Shapes: ...

    def read(self, read: Read, index: Index) -> Array: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Some outputs of a weight: what `QuantizedWeight` holds of them."""

    values: Array
    scale: Array
    zero: Array | None = None


class Scheme(Protocol):
    """How one weight is quantized. Hashable; equal schemes make equal layers, which are compiled once."""

    def layout(self, inputs: int) -> Layout | None:
        """The weight's layout; None where it stays as it is."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        """What the checkpoint must have in place of the weight `name`, `[outputs, inputs]`."""

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        """The slice `outputs` of the weight's outputs."""

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        """i32[inputs]; asked where the layout is ordered."""

    def read_input_scale(self, source: Source, read: Read) -> Array:
        """f32[]; asked where the layout has one."""


class Quantization(Protocol):
    """What a configuration, or `--quantization`, says of a whole model. Hashable."""

    @property
    def name(self) -> str:
        """The field's name of the format."""

    def scheme(self, module: str) -> Scheme | None:
        """How the weight of `module` is quantized; None where it is not. Decides nothing by what files hold."""


class StoredScheme:
    """What schemes share whose values are stored: every array is read through the weight's own source.

    A source reads rows and inputs of tensors `X.weight`; here it is handed a reader that answers with values,
    scales or zero points for these rows, with bytes or groups in place of inputs.
    """

    __slots__ = ()

    def layout(self, inputs: int) -> Layout | None:
        raise NotImplementedError

    def values(self, read: Read, stem: str, rows: slice, columns: slice) -> Array:
        """Values as `QuantizedWeight` has them; `columns` counts its last axis."""
        raise NotImplementedError

    def scales(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        raise NotImplementedError

    def zeros(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        raise NotImplementedError

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        layout = self.layout(inputs)
        assert layout is not None

        def assembled(plane: Callable[[Read, str, slice, slice], Array], size: int) -> Array:
            def answer(name: str, index: Index) -> Array:
                rows, columns = index
                return plane(read, name.removesuffix("weight"), rows, columns)

            return source.read(answer, (*outputs, slice(0, size)))

        groups = layout.groups(inputs)
        return Parts(
            assembled(self.values, inputs // 2 if layout.kind == "int4" else inputs),
            assembled(self.scales, groups),
            assembled(self.zeros, groups) if layout.asymmetric else None,
        )

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        layout = self.layout(inputs)
        assert layout is not None
        return consecutive(inputs, layout.group_size)

    def read_input_scale(self, source: Source, read: Read) -> Array:
        return largest_scale(source, read, "input_scale")


def consecutive(inputs: int, group_size: int) -> Array:
    """i32[inputs]: the group of each input where groups are neighbours."""
    return np.arange(inputs, dtype=np.int32) // np.int32(group_size)


def stems(source: Source) -> list[str]:
    """The names of a source's tensors without "weight"."""
    return [name.removesuffix("weight") for name in source.names()]


def largest_scale(source: Source, read: Read, name: str) -> Array:
    """f32[]: fused projections round their input once, with the largest of their scales."""
    scales = [read(f"{stem}{name}", ()) for stem in stems(source)]
    return np.max([np.asarray(scale).astype(np.float32).max() for scale in scales]).astype(np.float32)


def shared_index(source: Source, read: Read, tensor: str, groups: int) -> Array:
    """The group index that all parts of a fused weight have in common.

    Raises CheckpointError where they differ, or name what is none of the groups.
    """
    indices = [(stem, np.asarray(read(f"{stem}{tensor}", ())).astype(np.int32)) for stem in stems(source)]
    for stem, index in indices:
        wrong = index[(index < 0) | (index >= groups)]
        if wrong.size:
            raise CheckpointError(
                f"{stem}{tensor} names group {wrong[0]} but the groups are 0 to {groups - 1}; the file is damaged, or "
                "quantization_config has another group_size than its quantizer"
            )
    for stem, index in indices[1:]:
        if not np.array_equal(index, indices[0][1]):
            raise CheckpointError(
                f"{indices[0][0]}{tensor} and {stem}{tensor} order the same inputs differently; projections of one "
                "input are served as one product, so they must share an order, as GPTQ's quantizers write it"
            )
    return indices[0][1]


def matches(module: str, pattern: str) -> bool:
    """Whether a pattern of an ignore list means the module: its name, a part of it between dots, or what it is in."""
    return any(f".{pattern}." in f".{name}." for name in module_names(module))


def module_names(module: str) -> tuple[str, ...]:
    """A module's name, and those it has where the text model is a part of a larger one."""
    return module, f"language_model.{module}", f"model.language_model.{module.removeprefix('model.')}"


def field_of(fields: Mapping[str, Any], name: str, allowed: tuple[Any, ...], format_name: str) -> Any:
    """A field that has only some supported values. Raises CheckpointError naming them."""
    value = fields.get(name)
    if value not in allowed:
        raise CheckpointError(
            f"quantization_config of {format_name}: {name} is {value!r}; supported are {', '.join(map(str, allowed))}"
        )
    return value
