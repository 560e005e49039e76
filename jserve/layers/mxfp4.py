"""MXFP4 as gpt-oss keeps its experts: 4-bit floats in blocks of 32 along the inputs, with one power of two each.

OCP Microscaling Formats v1.0, sections 5.2 and 5.3. Read slice by slice, and dequantized to bfloat16, which holds
every such value exactly.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jserve.layers.expert_source import split_outputs
from jserve.layers.source import Index, ReadTensor

BLOCK = 32
VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
"""E2M1: what the three bits under the sign stand for."""


@dataclass(frozen=True, slots=True)
class Mxfp4Experts:
    """`[X, inputs, outputs]`, or `[X, inputs, 2, outputs]` with gate and up, whose outputs take turns.

    The checkpoint has NAME_blocks u8[X, outputs, inputs / 32, 16], two values a byte, the lower half first, and
    NAME_scales u8[X, outputs, inputs / 32], exponents with a bias of 127.
    """

    name: str
    count: int
    outputs: int
    """Of the gate alone, where up is beside it."""
    inputs: int
    parts: int = 1

    def names(self) -> dict[str, tuple[int, ...]]:
        scales = (self.count, self.parts * self.outputs, self.inputs // BLOCK)
        return {f"{self.name}_blocks": (*scales, BLOCK // 2), f"{self.name}_scales": scales}

    def read(self, read: ReadTensor, index: Index) -> np.ndarray:
        experts, inputs, *pair, outputs = index
        first, end = inputs.start // BLOCK, -(-inputs.stop // BLOCK)
        kept = slice(inputs.start - first * BLOCK, inputs.stop - first * BLOCK)

        def rows(wanted: slice) -> np.ndarray:
            """[experts, inputs, outputs]"""
            where = (experts, wanted, slice(first, end))
            values = dequantize(read(f"{self.name}_blocks", where), read(f"{self.name}_scales", where))
            return np.moveaxis(values[..., kept], 1, -1)

        return split_outputs(rows, outputs, pair, self.outputs, interleaved=self.parts == 2)


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """u8[X, outputs, blocks, 16] and u8[X, outputs, blocks] to bfloat16[X, outputs, blocks * 32]."""
    table = np.concatenate([VALUES, -VALUES])
    byte = np.arange(256)
    pairs = np.stack([table[byte & 15], table[byte >> 4]], axis=-1)
    out = np.empty((*blocks.shape, 2), np.uint16)
    for expert, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
        values = pairs[block]
        values *= np.ldexp(np.float32(1), scale.astype(np.int32) - 127)[..., np.newaxis, np.newaxis]
        out[expert] = values.view(np.uint32) >> 16  # the rest of the mantissa is zero
    return out.view(ml_dtypes.bfloat16).reshape(*blocks.shape[:2], -1)
