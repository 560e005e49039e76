"""How a product with a quantized weight is cut into programs: pure functions of its shape and the device.

The numbers follow from bytes in flight, registers and shared memory, not from measurements: none was on a GPU. What a
device's table (`pallas_kernels.tuning`) says replaces them.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from ..paged_attention.target import Target
from ..paged_attention.triton_tile import power_of_two
from ..tuning import tuned

__all__ = ["MANY_ROWS", "Product", "Tiling", "choose_splits", "choose_tiling"]

FEWEST_ROWS = 16  # of a tile; tensor cores take no fewer on every GPU, and missing rows cost no memory traffic
MANY_ROWS = 64  # with more, arithmetic limits a product and not the reading of its weight
PROGRAMS_PER_CORE = 3
"""Each has about 12 KiB of a weight on its way; an H200 needs some 30 KiB per SM to hide 800 ns of latency."""
START = 4  # blocks that could be multiplied while a program fills its pipeline and stores its sums
FEWEST_BLOCKS = 4  # of a program; its pipeline is as long


@dataclass(frozen=True, slots=True)
class Product:
    """T rows times a weight of N outputs and K inputs in G groups. Hashable."""

    T: int
    N: int
    K: int
    G: int
    kind: str
    """The type of the weight: "int4", "int8" or "fp8"."""
    dtype: jnp.dtype
    """The type of both sides in the product: that of the rows, int8 or float8."""
    ordered: bool = False
    """Whether each input names its group."""

    @property
    def group(self) -> int:
        """Inputs that share a scale, where groups are neighbours of one size."""
        return self.K // self.G

    def key(self, rows: int) -> str:
        """What its tiles hang on, as the tables of `pallas_kernels.tuning` write it; rows: of a tile."""
        groups = "ordered" if self.ordered else "channels" if self.G == 1 else f"group{self.group}"
        return f"{self.kind} {jnp.dtype(self.dtype).name} {groups} rows{rows}"

    @property
    def codes_per_byte(self) -> int:
        return 2 if self.kind == "int4" else 1

    @property
    def is_scaled_by_input(self) -> bool:
        """Whether each weight is scaled before the product: groups that no block of inputs lies within."""
        return self.ordered or (self.G > 1 and self.largest_block < 16 * self.codes_per_byte)

    @property
    def largest_block(self) -> int:
        """The largest power of two of inputs that lie in one group wherever a block of them starts."""
        return self.group & -self.group if self.G > 1 else 1 << 30


@dataclass(frozen=True, slots=True)
class Filling:
    """How many programs with few rows an SM has at least, if the inputs can be split so often."""

    programs_per_core: int = PROGRAMS_PER_CORE


@dataclass(frozen=True, slots=True)
class Tiling:
    """A program multiplies `rows` by `outputs`, `inputs` at a time."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def choose_tiling(product: Product, target: Target) -> Tiling:
    """No tile spills registers on sm_80 and sm_90a, which a test asserts.

    A few rows: 64 outputs by 128 inputs, 4 KiB of 4-bit codes, whose three loads in flight and 80 to 150
    registers a thread let three programs share an SM. Many rows: 128 x 128 sums, so that a weight is unpacked
    once for 128 rows; they and one block's product take 128 registers of each of 256 threads. Where operands
    pass through registers (before Hopper), blocks are half as long.
    """
    rows = max(FEWEST_ROWS, power_of_two(min(product.T, 2 * MANY_ROWS)))
    if product.dtype == jnp.float32:
        # Full float32 products run on the plain cores, and their operands live in registers too.
        wanted = Tiling(min(rows, 32), 32, 32, 4, 2)
    elif product.is_scaled_by_input:
        # A scale for every weight is loaded into registers beside it.
        wanted = Tiling(min(rows, MANY_ROWS), 64, 64, 4, 3)
    elif rows <= MANY_ROWS:
        wanted = Tiling(rows, 64, 128, 4, 4 if rows < MANY_ROWS else 3)
    else:
        wanted = Tiling(rows, 128, 128 if target.has_wgmma else 64, 8, 3)
    wanted = tuned(target.kind, "quant_matmul", product.key(rows), wanted)
    inputs = wanted.inputs if product.is_scaled_by_input else min(wanted.inputs, product.largest_block)
    return Tiling(wanted.rows, wanted.outputs, inputs, wanted.num_warps, wanted.num_stages)


def choose_splits(product: Product, tiling: Tiling, target: Target) -> int:
    """How many programs share the inputs of one tile: what makes the busiest SM finish first.

    An SM with fewer than PROGRAMS_PER_CORE small programs waits for memory and is no faster than with so many.
    Depends on shapes alone, so that a row's sums do not change with its neighbours.
    """
    blocks = -(-product.K // tiling.inputs)
    tiles = -(-product.T // tiling.rows) * -(-product.N // tiling.outputs)
    filling = tuned(target.kind, "quant_matmul_splits", product.key(tiling.rows), Filling())
    at_once = filling.programs_per_core if tiling.rows <= MANY_ROWS else 1

    # Sums of a part are written and read in float32, beside a block's bytes of the weight.
    bits = 4 if product.kind == "int4" else 8
    parts = 64 * min(product.T, tiling.rows) // (tiling.inputs * bits)

    def time(splits: int) -> int:
        per_core = max(at_once, -(-tiles * splits // target.num_cores))
        return per_core * (-(-blocks // splits) + START + (parts if splits > 1 else 0))

    return min(range(1, max(1, blocks // FEWEST_BLOCKS) + 1), key=time)
