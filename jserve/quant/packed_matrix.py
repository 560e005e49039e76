"""A packed weight in a model: a `PackedWeight` with the axes of its outputs, and how it is multiplied."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jserve.quant.scheme import Array, Index, Read, Shapes, Source
from pallas_kernels.packed_matmul import (
    CODINGS,
    STEP,
    TILE,
    PackedWeight,
    dequantize,
    dequantize_rows,
    kind_of,
    packed_matmul,
)


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Which arrays a packed weight has. Hashable; equal for all weights of a kind."""

    coding: str
    """One of `CODINGS`."""
    group_size: int
    """Inputs that share a scale."""
    factor_size: int = 0
    """Inputs that share an integer by which the scale is multiplied; 0: there are none."""
    minimum: str = ""
    """ "own": in floating point, for each scale; "factors": such times integers; "zero": zero points."""
    scale_dtype: str = "float16"

    def fits(self, outputs: tuple[int, ...], inputs: int) -> bool:
        """Whether the outputs are whole tiles and the inputs whole steps and groups."""
        least = CODINGS[self.coding].group
        sizes = [size for size in (self.group_size, self.factor_size) if size]
        whole = all(inputs % size == 0 and size % least == 0 for size in sizes)
        return whole and inputs % STEP == 0 and outputs[-1] % TILE == 0


class PackedScheme(Protocol):
    """How a weight comes to be packed. Hashable; like `Scheme`, for another layout."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        """What the checkpoint must have in place of the weight `name`, `[outputs, inputs]`."""

    def packed_layout(self, inputs: int) -> PackedLayout | None:
        """None where the weight cannot be packed."""

    def read_packed(self, source: Source, read: Read, outputs: Index, inputs: int) -> Mapping[str, Array]:
        """The arrays of the slice `outputs`, which are whole tiles."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["packed"], meta_fields=["outputs", "activations", "implementation"]
)
@dataclass(frozen=True)
class PackedMatrix:
    """A weight `[*outputs, inputs]`. The same type holds what belongs to each array: its shape, its partition."""

    packed: PackedWeight
    outputs: tuple[int, ...]
    activations: str
    """What `packed_matmul` makes of the other side."""
    implementation: str

    def arrays(self) -> dict[str, Any]:
        return self.packed.arrays()

    @property
    def kind(self) -> str:
        """The native kernel's."""
        return kind_of(self.packed, self.activations)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x: [T, inputs] to f32[T, *outputs]."""
        y = packed_matmul(x, self.packed, activations=self.activations, implementation=self.implementation)
        return y.reshape(-1, *self.outputs)

    def dequantize(self) -> jax.Array:
        """f32[*outputs, inputs]"""
        return dequantize(self.packed).reshape(*self.outputs, -1)

    def rows(self, numbers: jax.Array) -> jax.Array:
        """The outputs i32[T] of a weight with one axis of them, f32[T, inputs]; the nearest where there is none."""
        return dequantize_rows(self.packed, numbers)


def abstract_packed(
    layout: PackedLayout, outputs: tuple[int, ...], inputs: int, *, activations: str, implementation: str
) -> PackedMatrix:
    """Shapes and types of the arrays."""
    tiles = 1
    for size in outputs:
        tiles *= size
    tiles //= TILE

    def plane(bits: int) -> Any:
        return jax.ShapeDtypeStruct((tiles, inputs * bits // 32, TILE, 4), jnp.dtype("uint8"))

    def per_group(size: int, dtype: str) -> Any:
        return jax.ShapeDtypeStruct((tiles, inputs // size, TILE), jnp.dtype(dtype))

    planes = CODINGS[layout.coding].planes
    has_own, factor_size = layout.minimum in ("own", "factors"), layout.factor_size
    packed = PackedWeight(
        codes=plane(planes[0]),
        high=plane(planes[1]) if len(planes) > 1 else None,
        scale=per_group(layout.group_size, layout.scale_dtype),
        scale_codes=per_group(factor_size, "int8") if factor_size else None,
        minimum=per_group(layout.group_size, layout.scale_dtype) if has_own else None,
        minimum_codes=per_group(factor_size or layout.group_size, "int8")
        if layout.minimum in ("factors", "zero")
        else None,
        coding=layout.coding,
    )
    return PackedMatrix(packed, outputs, activations, implementation)


def whole_partitions(matrix: PackedMatrix) -> PackedMatrix:
    """The partition of every array: one device has them all."""
    partitions: PackedMatrix = jax.tree.map(lambda array: PartitionSpec(*[None] * len(array.shape)), matrix)
    return partitions
