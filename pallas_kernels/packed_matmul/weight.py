"""A weight of 2 to 8 bits that decodes to the numbers of its file, bit for bit: codes, scales and minimums in tiles.

A tile is TILE outputs with all their inputs. Within it four inputs of all outputs lie next to each other, as products
of bytes want them: one load has 64 codes, whose sums stay in the lanes of their outputs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

__all__ = ["ACTIVATIONS", "CODINGS", "ROUNDED_INPUTS", "STEP", "TILE", "Coding", "PackedWeight"]

TILE = 16
"""Outputs of a tile."""
QUAD = 4
"""Inputs that lie next to each other."""
STEP = 32
"""What the number of inputs is a multiple of."""
ROUNDED_INPUTS = 32
"""Inputs that share a scale where activations are rounded to int8; llama.cpp's Q8_0 has as many."""
ACTIVATIONS = ("float", "int8")
"""How the other side of a product is taken: as it is, or rounded."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What a code means. Its bits lie in one plane, or in two: the lower ones first."""

    planes: tuple[int, ...]
    """Bits of a code in each plane."""
    group: int = 32
    """The fewest inputs that share a scale."""
    table: tuple[int, ...] = ()
    """Values by code, in -128..127; () where a code is its own value."""

    @property
    def bits(self) -> int:
        return sum(self.planes)

    def middle(self, has_minimum: bool) -> int:
        """What is taken off a code first: codes without a minimum are about the middle, those of 8 bits always."""
        return 0 if self.table or (has_minimum and self.bits < 8) else 1 << (self.bits - 1)


CODINGS = {
    "2": Coding((2,), 16),
    "3": Coding((2, 1), 16),
    "4": Coding((4,)),
    "5": Coding((4, 1)),
    "6": Coding((4, 2), 16),
    "8": Coding((8,)),
    "iq4": Coding((4,), table=(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)),
    "fp4": Coding((4,), table=(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)),
}
"""By name. "iq4" are the values of GGML's IQ4_NL and IQ4_XS; "fp4" twice those of e2m1 (OCP Microscaling Formats v1.0,
section 5.3.3).
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "high", "scale", "scale_codes", "minimum", "minimum_codes"],
    meta_fields=["coding"],
)
@dataclass(frozen=True)
class PackedWeight:
    """A weight of N outputs and K inputs, N a multiple of TILE, K one of STEP: (code - middle) * scale + minimum, or
    (code - middle - minimum code) * scale.

    Input k has the scale of group k // (K / groups); so with all arrays, each of as many groups as it has.
    """

    codes: jax.Array
    """u8[N / 16, K * bits / 32, 16, 4] of the first plane. Byte b of an output has `bits` of the inputs (r, j, b % 4):
    r is the byte's row, j counts quads of inputs within it, the first in the lowest bits.
    """
    high: jax.Array | None
    """The second plane, likewise."""
    scale: jax.Array
    """float32, bfloat16 or float16 [N / 16, groups, 16]"""
    scale_codes: jax.Array | None
    """i8[N / 16, groups, 16], by which the scale is multiplied."""
    minimum: jax.Array | None
    """Like `scale`, and of its type."""
    minimum_codes: jax.Array | None
    """i8[N / 16, groups, 16], by which the minimum is multiplied; zero points where there is no `minimum`."""
    coding: str
    """One of CODINGS."""

    def arrays(self) -> dict[str, Any]:
        """By name, those that the weight has; likewise of its shapes and partitions."""
        names = ("codes", "high", "scale", "scale_codes", "minimum", "minimum_codes")
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    @property
    def has_minimum(self) -> bool:
        return self.minimum is not None or self.minimum_codes is not None

    @property
    def outputs(self) -> int:
        return int(self.codes.shape[0]) * TILE

    @property
    def inputs(self) -> int:
        return int(self.codes.shape[1]) * 8 * QUAD // CODINGS[self.coding].planes[0]
