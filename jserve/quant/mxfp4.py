"""MXFP4 as gpt-oss keeps its experts: 4-bit floats in blocks of 32 along the inputs, with one power of two each.

OCP Microscaling Formats v1.0, sections 5.2 and 5.3. The checkpoint has NAME_blocks u8[X, outputs, inputs / 32, 16], two
values a byte, the lower half first, and NAME_scales u8[X, outputs, inputs / 32]; they stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes

from jserve.quant.scheme import Array, Index, Parts, Read, Shapes, Source
from jserve.quant.weight import Layout

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Mxfp4Weight:
    """A `Scheme` of all experts of a layer, whose source reads `[X, rows, inputs]`."""

    def layout(self, inputs: int) -> Layout:
        return Layout("mxfp4", BLOCK, scale_dtype="float8_e8m0fnu")

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        count, rows, inputs = shape
        blocks = (count, rows, inputs // BLOCK)
        return {f"{name}_blocks": (*blocks, BLOCK // 2), f"{name}_scales": blocks}

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        def assembled(plane: Callable[[str, Index], Array], size: int) -> Array:
            return source.read(lambda name, index: plane(name, index[:2]), (*outputs, slice(0, size)))

        def values(name: str, rows: Index) -> Array:
            blocks = read(f"{name}_blocks", rows)
            return blocks.reshape(*blocks.shape[:2], -1)

        def scales(name: str, rows: Index) -> Array:
            return read(f"{name}_scales", rows).view(ml_dtypes.float8_e8m0fnu)

        return Parts(assembled(values, inputs // 2), assembled(scales, inputs // BLOCK))

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        raise NotImplementedError("blocks are neighbours")

    def read_input_scale(self, source: Source, read: Read) -> Array:
        raise NotImplementedError("activations stay as they are")


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """A `Quantization`: of experts alone."""

    name: str = "mxfp4"

    def scheme(self, module: str) -> Mxfp4Weight | None:
        return Mxfp4Weight() if module.endswith((".experts.gate_up_proj", ".experts.down_proj")) else None
