"""How the grouped products of a mixture are cut into programs, from shapes and the kind of GPU alone.

Never from what a router chose: a token's result must not depend on its neighbours' experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ..paged_attention.target import Target
from ..paged_attention.triton_tile import power_of_two
from ..tuning import tuned

__all__ = ["Packing", "Product", "Tiling", "choose_rows", "choose_tiling"]

FEWEST_ROWS = 16  # of a tensor core's tile
MOST_ROWS = 128
PROGRAMS_PER_CORE = 2  # fewer leave the loads of a small batch waiting on one SM and others idle


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights lie: in floating point, or packed in `groups` of inputs; see `PackedExperts`."""

    kind: str = ""
    groups: int = 1
    has_zero: bool = False

    @property
    def planes(self) -> int:
        """2 where even and odd inputs share a byte; K / planes is then the number of columns."""
        return 2 if self.kind in ("int4", "mxfp4") else 1

    @property
    def num_arrays(self) -> int:
        return (2 if self.kind else 1) + self.has_zero


@dataclass(frozen=True, slots=True)
class Product:
    """What is static about rows [.., K] times P weights [K, N] of each of X experts.

    With `activate` it is the first product, of gate and up (P is 2), else the second.
    """

    X: int
    J: int
    K: int
    N: int
    P: int
    packing: Packing
    activate: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    out_planes: int = 1
    """2 where the next product has its inputs in two planes."""
    has_fp8: bool = True
    """Whether the device converts float8; else its bits are taken apart."""

    def question(self, M: int, dtype: jnp.dtype) -> tuple[str, str]:
        """What the tables of `pallas_kernels.tuning` are asked for its tiles: the kernel, and what they hang on."""
        held = self.packing.kind or "float"
        return "moe_gate_up" if self.activate else "moe_down", f"{held} {jnp.dtype(dtype).name} M{M}"


@dataclass(frozen=True, slots=True)
class Tiling:
    """One program: M rows times N outputs (of each of the P weights), K columns of inputs a step."""

    M: int
    N: int
    K: int
    num_warps: int
    num_stages: int


def choose_rows(T: int, J: int, X: int, dtype: jnp.dtype) -> int:
    """M: the rows that an expert has on average, within bounds; no expert has more than T.

    float32 has no tensor cores here and holds its operands in registers.
    """
    most = 32 if jnp.dtype(dtype) == jnp.float32 else MOST_ROWS
    wanted = min(power_of_two(-(-T * J // X)), power_of_two(T))
    return max(FEWEST_ROWS, min(wanted, most))


def choose_tiling(product: Product, M: int, pairs: int, dtype: jnp.dtype, target: Target) -> Tiling:
    """The widest tile whose sums stay in registers and that still leaves every SM some programs.

    Few rows are bound by the weights that are read: narrow tiles, more of them, and four stages, so that some 50 KiB
    are on the way to each SM. Many rows are bound by the tensor cores: as square as the sums allow.
    """
    wanted = tuned(target.kind, *product.question(M, dtype), _choose(product, M, pairs, dtype, target))
    return _fit_groups(product, replace(wanted, M=M))


def _choose(product: Product, M: int, pairs: int, dtype: jnp.dtype, target: Target) -> Tiling:
    if jnp.dtype(dtype) == jnp.float32:
        return Tiling(M, 32 if product.P == 1 else 16, 16, 4, 2)
    if M <= 32:
        tiles = min(pairs, product.X)
        N = 64
        while N > 16 and tiles * -(-product.N // N) < PROGRAMS_PER_CORE * target.num_cores:
            N //= 2
        # Codes of 4 bits and their zero points spill on sm_100a with four warps.
        spills = product.packing.kind == "int4" and target.capability >= (10, 0)
        warps, stages = 8 if spills else 4, 4 if target.has_wgmma else 3
        return Tiling(M, N, 64 if N == 64 else 128, warps, stages)
    N = 128 // product.P
    K = 64 if target.has_wgmma else 32
    return Tiling(M, N, K, 8 if M == 128 else 4, 3)


def _fit_groups(product: Product, tiling: Tiling) -> Tiling:
    """Blocks of columns that lie in one group, down to the 16 that a tensor core takes; else of whole groups."""
    each = product.K // product.packing.planes // product.packing.groups
    while product.packing.groups > 1 and tiling.K > 16 and each % tiling.K:
        tiling = replace(tiling, K=tiling.K // 2)
    return tiling
