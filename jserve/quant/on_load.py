"""`--quantization`: weights that a checkpoint has in floating point are rounded while they are read.

All matrices of linear layers are; the token table, the output projection and norms stay, as is usual.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jserve.quant.rounding import round_fp8, round_int4, round_int8
from jserve.quant.scheme import Array, Index, Parts, Read, Source, consecutive
from jserve.quant.weight import Layout

GROUP_SIZES = (128, 64, 32, 16)
"""Group sizes for int4; the largest that divides the inputs is taken."""

METHODS: Mapping[str, Layout] = {
    "int8": Layout("int8"),
    "int8-w8a8": Layout("int8", activations="int8"),
    "fp8": Layout("fp8", activations="fp8"),
    "int4": Layout("int4", group_size=GROUP_SIZES[0], asymmetric=True, scale_dtype="bfloat16"),
}
"""What `--quantization` may ask for."""


@dataclass(frozen=True, slots=True)
class OnLoad:
    """A `Quantization`, and the `Scheme` of every module alike."""

    name: str

    def scheme(self, module: str) -> "OnLoad":
        return self

    def layout(self, inputs: int) -> Layout | None:
        """None where the inputs are no whole groups of int4."""
        layout = METHODS[self.name]
        if layout.kind != "int4":
            return layout
        sizes = [size for size in GROUP_SIZES if inputs % size == 0]
        return Layout("int4", sizes[0], asymmetric=True, scale_dtype=layout.scale_dtype) if sizes else None

    def tensors(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {name: shape}

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        weight = source.read(read, (*outputs, slice(0, inputs))).astype(np.float32)
        layout = self.layout(inputs)
        assert layout is not None
        match layout.kind:
            case "int8":
                return round_int8(weight)
            case "fp8":
                return round_fp8(weight)
        return round_int4(weight, layout.group_size)

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        layout = self.layout(inputs)
        assert layout is not None
        return consecutive(inputs, layout.group_size)

    def read_input_scale(self, source: Source, read: Read) -> Array:
        raise NotImplementedError("activations are rounded with a scale of their own")
