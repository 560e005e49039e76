"""From codes and scales, outputs first, to the tiles of a `PackedWeight`. Works on the host, in numpy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jserve.quant.scheme import Array
from pallas_kernels.packed_matmul import CODINGS, TILE


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Some outputs of a weight, as a file or a rounding gives them; see `PackedWeight` for what they mean."""

    codes: Array
    """u8[outputs, inputs]"""
    scale: Array
    """[outputs, groups], as all others."""
    scale_codes: Array | None = None
    minimum: Array | None = None
    minimum_codes: Array | None = None


def pack(weight: Unpacked, coding: str) -> dict[str, Array]:
    """The arrays of a `PackedWeight` by name; outputs must be whole tiles, inputs whole steps."""
    arrays: dict[str, Array] = {}
    below = 0
    for name, bits in zip(("codes", "high"), CODINGS[coding].planes, strict=False):
        arrays[name] = _plane(weight.codes, below, bits)
        below += bits
    for name in ("scale", "scale_codes", "minimum", "minimum_codes"):
        of_groups: Array | None = getattr(weight, name)
        if of_groups is not None:
            tiles = of_groups.reshape(-1, TILE, of_groups.shape[-1])
            arrays[name] = np.ascontiguousarray(tiles.swapaxes(1, 2))
    return arrays


def _plane(codes: Array, below: int, bits: int) -> Array:
    """`bits` of each code, those above the lowest `below`: u8[tiles, inputs * bits / 32, TILE, 4]."""
    outputs = len(codes)
    per_byte, mask = 8 // bits, np.uint32(((1 << bits) - 1) * 0x01010101)
    quads: Any = np.ascontiguousarray(codes).view(np.uint32).reshape(outputs, -1, per_byte)
    packed = (quads[..., 0] >> np.uint32(below)) & mask
    for n in range(1, per_byte):
        packed |= ((quads[..., n] >> np.uint32(below)) & mask) << np.uint32(bits * n)
    tiles = packed.reshape(outputs // TILE, TILE, -1).swapaxes(1, 2)
    whole: Array = np.ascontiguousarray(tiles).view(np.uint8).reshape(*tiles.shape, 4)
    return whole
