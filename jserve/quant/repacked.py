"""Weights in integers, of whatever format, packed for the native products of a CPU: the same numbers in tiles."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jserve.quant.packed_matrix import PackedLayout
from jserve.quant.packing import Unpacked, pack
from jserve.quant.rounding import unpack_pairs
from jserve.quant.scheme import Array, Index, Read, Scheme, Shapes, Source

CODINGS_OF_KINDS = {"int4": "4", "int8": "8"}


@dataclass(frozen=True, slots=True)
class Repacked:
    """A `PackedScheme` of what another scheme reads."""

    each: Scheme

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        return self.each.tensors(name, shape)

    def packed_layout(self, inputs: int) -> PackedLayout | None:
        layout = self.each.layout(inputs)
        if layout is None or layout.kind not in CODINGS_OF_KINDS or layout.ordered or layout.activations != "float":
            return None
        minimum = "zero" if layout.asymmetric else ""
        size = layout.group_size or inputs
        return PackedLayout(CODINGS_OF_KINDS[layout.kind], size, minimum=minimum, scale_dtype=layout.scale_dtype)

    def read_packed(self, source: Source, read: Read, outputs: Index, inputs: int) -> Mapping[str, Array]:
        layout = self.packed_layout(inputs)
        assert layout is not None
        parts = self.each.read(source, read, outputs, inputs)

        def flat(array: Array) -> Array:
            return array.reshape(-1, array.shape[-1])

        values = flat(parts.values)
        codes = unpack_pairs(values) if layout.coding == "4" else values.view(np.uint8) ^ 0x80
        zero = None if parts.zero is None else flat(parts.zero)
        scale = flat(parts.scale).astype(layout.scale_dtype, copy=False)
        return pack(Unpacked(codes, scale, minimum_codes=zero), layout.coding)
