"""A quantized weight in memory: one layout for integers of 4 and 8 bits and for float8, whatever file it is from.

Values lie outputs first, scales beside them, so that fused projections and slices for devices are slices of
every array alike. Products go through `pallas_kernels.quant_matmul`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pallas_kernels.quant_matmul import dequantize, quant_matmul


@dataclass(frozen=True, slots=True)
class Layout:
    """Which arrays a weight has. Hashable; equal for all weights of a kind."""

    kind: str
    """ "int4", "int8" or "fp8"; of experts also "mxfp4"."""
    group_size: int = 0
    """Inputs that share a scale; 0 where all inputs of an output do."""
    asymmetric: bool = False
    """Whether groups have a zero point."""
    ordered: bool = False
    """Whether each input names its group (activation order, or groups that devices cut)."""
    activations: str = "float"
    """What the other side of a product is rounded to: "float" (not at all), "int8" or "fp8"."""
    static_input: bool = False
    """Whether that rounding has a fixed scale."""
    scale_dtype: str = "float32"

    def groups(self, inputs: int) -> int:
        return -(-inputs // self.group_size) if self.group_size else 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scale", "zero", "group_index", "input_scale"],
    meta_fields=["activations"],
)
@dataclass(frozen=True)
class QuantizedWeight:
    """(values - zero) * scale, a weight `[*outputs, inputs]`; see `quant_matmul` for what each array means.

    The same type holds what belongs to each array: its shape, its partition, its source.
    """

    values: jax.Array
    """int8 or float8 [*outputs, inputs], or uint8 [*outputs, inputs / 2]."""
    scale: jax.Array
    """[*outputs, groups]"""
    zero: jax.Array | None
    """int8[*outputs, groups]"""
    group_index: jax.Array | None
    """i32[inputs]"""
    input_scale: jax.Array | None
    """f32[]"""
    activations: str = "float"

    def arrays(self) -> dict[str, Any]:
        """By name, those that the weight has; likewise of its shapes and partitions."""
        names = ("values", "scale", "zero", "group_index", "input_scale")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(self.values.shape[:-1])

    def matmul(self, x: jax.Array) -> jax.Array:
        """x: [T, inputs] to f32[T, *outputs]."""
        flat = self._flat()
        arrays = (flat.values, flat.scale, flat.zero, flat.group_index, flat.input_scale)
        y: jax.Array = quant_matmul(x, *arrays, activations=self.activations)
        return y.reshape(-1, *self.outputs)

    def dequantize(self) -> jax.Array:
        """f32[*outputs, inputs]"""
        flat = self._flat()
        weight = dequantize(flat.values, flat.scale, flat.zero, flat.group_index)
        return weight.reshape(*self.outputs, -1)

    def _flat(self) -> "QuantizedWeight":
        def flatten(array: jax.Array) -> jax.Array:
            return array.reshape(-1, array.shape[-1])

        zero = None if self.zero is None else flatten(self.zero)
        return replace(self, values=flatten(self.values), scale=flatten(self.scale), zero=zero)


VALUE_TYPES = {"int4": jnp.dtype("uint8"), "int8": jnp.dtype("int8"), "fp8": jnp.dtype(jnp.float8_e4m3fn)}


def abstract_weight(layout: Layout, outputs: tuple[int, ...], inputs: int) -> QuantizedWeight:
    """Shapes and types of the arrays of a weight."""
    width = inputs // 2 if layout.kind == "int4" else inputs
    per_group = (*outputs, layout.groups(inputs))
    array = jax.ShapeDtypeStruct
    return QuantizedWeight(
        values=array((*outputs, width), VALUE_TYPES[layout.kind]),  # type: ignore[arg-type]
        scale=array(per_group, jnp.dtype(layout.scale_dtype)),  # type: ignore[arg-type]
        zero=array(per_group, jnp.dtype("int8")) if layout.asymmetric else None,  # type: ignore[arg-type]
        group_index=array((inputs,), jnp.dtype("int32")) if layout.ordered else None,  # type: ignore[arg-type]
        input_scale=array((), jnp.dtype("float32")) if layout.static_input else None,  # type: ignore[arg-type]
        activations=layout.activations,
    )


def fit_devices(layout: Layout, inputs: int, parts: int) -> Layout:
    """The layout of a weight whose inputs are split over `parts` devices: groups that a device would hold only
    a part of are named input by input, beside scales that every device has.
    """
    if layout.group_size and (inputs % layout.group_size or inputs // parts % layout.group_size):
        return replace(layout, ordered=True)
    return layout


def shardings(layout: Layout, axes: tuple[str | None, ...]) -> QuantizedWeight:
    """The partition of every array of a weight, whose own axes are `[*outputs, inputs]`."""
    *outputs, inputs = axes
    grouped = inputs if layout.group_size and not layout.ordered else None
    per_group = PartitionSpec(*outputs, grouped)
    return QuantizedWeight(
        values=PartitionSpec(*axes),  # type: ignore[arg-type]
        scale=per_group,  # type: ignore[arg-type]
        zero=per_group if layout.asymmetric else None,  # type: ignore[arg-type]
        group_index=PartitionSpec(inputs) if layout.ordered else None,  # type: ignore[arg-type]
        input_scale=PartitionSpec() if layout.static_input else None,  # type: ignore[arg-type]
        activations=layout.activations,
    )
