"""Quantized experts: the layout of `weight.py` with an axis of experts first, and how any format is read into it.

Activations stay as they are: experts are read for a few tokens each, which the weights' bytes alone bind. Every group
of inputs lies on one device whole: where devices cut groups, these are kept as smaller ones.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jserve.errors import CheckpointError
from jserve.quant.scheme import Array, Index, Parts, Read, Scheme, Shapes, Source
from jserve.quant.weight import Layout
from pallas_kernels.moe import PackedExperts

PAIRS = ("int4", "mxfp4")
"""Kinds of 4 bits: two codes in a byte."""


def abstract_experts(layout: Layout, outputs: tuple[int, ...], inputs: int) -> PackedExperts:
    """Shapes and types of the arrays; `outputs` starts with the number of experts."""
    array = jax.ShapeDtypeStruct
    width = inputs // 2 if layout.kind in PAIRS else inputs
    per_group = (*outputs, layout.groups(inputs))
    return PackedExperts(
        values=array((*outputs, width), jnp.dtype("uint8" if layout.kind in PAIRS else "int8")),  # type: ignore[arg-type]
        scale=array(per_group, _bits_of(layout.scale_dtype)),  # type: ignore[arg-type]
        zero=array(per_group, jnp.dtype("int8")) if layout.asymmetric else None,  # type: ignore[arg-type]
        kind=layout.kind,
    )


def expert_shardings(layout: Layout, axes: tuple[str | None, ...]) -> PackedExperts:
    """The partition of every array of weights whose own axes are `[X, *outputs, inputs]`."""
    *outputs, inputs = axes
    per_group = PartitionSpec(*outputs, inputs if layout.group_size else None)
    return PackedExperts(
        values=PartitionSpec(*axes),  # type: ignore[arg-type]
        scale=per_group,  # type: ignore[arg-type]
        zero=per_group if layout.asymmetric else None,  # type: ignore[arg-type]
        kind=layout.kind,
    )


@dataclass(frozen=True, slots=True)
class OfExperts:
    """A `Scheme` of all experts of a layer: that of each of them, on devices that share its inputs in `parts`."""

    each: Scheme
    parts: int

    def layout(self, inputs: int) -> Layout | None:
        """Raises CheckpointError for what is supported of linear layers alone."""
        layout = self.each.layout(inputs)
        if layout is None:
            return None
        if layout.ordered:
            raise CheckpointError(
                "experts in activation order (desc_act, actorder) are not supported; supported are groups of "
                "neighbouring inputs"
            )
        size = math.gcd(layout.group_size, inputs, inputs // self.parts) if layout.group_size else 0
        share = inputs // self.parts
        if layout.kind in PAIRS and (size % 2 or share % 2):
            raise CheckpointError(
                f"experts in 4 bits: {inputs} inputs over {self.parts} devices in groups of {layout.group_size} would "
                "cut bytes in two; supported are even shares; raise --expert-parallel-size, or choose fewer devices"
            )
        return replace(layout, group_size=size, activations="float", static_input=False)

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        return self.each.tensors(name, shape)

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        own, wanted = self.each.layout(inputs), self.layout(inputs)
        assert own is not None
        assert wanted is not None
        parts = self.each.read(source, read, outputs, inputs)

        def regrouped(of_groups: Array) -> Array:
            if own.group_size == wanted.group_size:
                return of_groups
            return of_groups[..., np.arange(wanted.groups(inputs)) * wanted.group_size // own.group_size]

        values = parts.values if parts.values.dtype.isbuiltin == 1 else parts.values.view(np.int8)
        scale = regrouped(parts.scale.astype(jnp.dtype(wanted.scale_dtype), copy=False))
        zero = None if parts.zero is None else regrouped(parts.zero)
        return Parts(values, scale.view(_bits_of(wanted.scale_dtype)), zero)

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        raise NotImplementedError("experts have no order of inputs")

    def read_input_scale(self, source: Source, read: Read) -> Array:
        raise NotImplementedError("experts leave activations as they are")


def _bits_of(scale_dtype: str) -> np.dtype:
    """The type that scales are kept in: see `pallas_kernels.moe.packed`."""
    dtype = jnp.dtype(scale_dtype)
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"uint{8 * dtype.itemsize}")
