"""Shapes of real models, in the codings of their files, on which products with packed weights are tested and timed."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .. import KernelInputs
from .weight import CODINGS, TILE, PackedWeight

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """T rows times a weight of N outputs and K inputs."""

    name: str
    T: int
    N: int
    K: int
    coding: str
    groups: int
    """Inputs that share a scale."""
    factors: int = 0
    """Inputs that share an integer by which the scale is multiplied; 0: there are none."""
    minimum: str = ""
    """ "own": in float; "factors": times integers; "zero": zero points."""
    activations: str = "int8"
    scale: str = "float16"
    quick: bool = True
    tolerance: float = 2e-5
    """Float32 sums in another order; results are of order 1."""

    @property
    def flops(self) -> int:
        return 2 * self.T * self.N * self.K

    @property
    def bytes_moved(self) -> int:
        """x, the weight and the result once."""
        per_weight = CODINGS[self.coding].bits / 8 + jnp.dtype(self.scale).itemsize / self.groups
        if self.minimum in ("own", "factors"):
            per_weight += jnp.dtype(self.scale).itemsize / self.groups
        integers = (
            [self.factors, self.factors or self.groups] if self.minimum in ("factors", "zero") else [self.factors]
        )
        per_weight += sum(1 / size for size in integers if size)
        return 4 * self.T * (self.K + self.N) + int(self.N * self.K * per_weight)

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `packed_matmul`'s parameters."""
        rng = np.random.default_rng(seed)
        coding, tiles = CODINGS[self.coding], self.N // TILE
        x = rng.standard_normal((self.T, self.K), np.float32)
        spread = 2.0**coding.bits / 3 if not coding.table else max(map(abs, coding.table)) / 2

        def floats(groups: int, size: float) -> jax.Array:
            values = rng.uniform(0.5, 1.5, (tiles, self.K // groups, TILE)) * size
            return jnp.asarray(values, self.scale)

        def integers(groups: int) -> jax.Array:
            return jnp.asarray(rng.integers(1, 32, (tiles, self.K // groups, TILE)), jnp.int8)

        def plane(bits: int) -> jax.Array:
            return jnp.asarray(rng.integers(0, 256, (tiles, self.K * bits // 32, TILE, 4), dtype=np.uint8))

        each = self.K**-0.5 / spread / (16 if self.factors else 1)
        least = -(self.K**-0.5) / (16 if self.minimum == "factors" else 1)
        weight = PackedWeight(
            codes=plane(coding.planes[0]),
            high=plane(coding.planes[1]) if len(coding.planes) > 1 else None,
            scale=floats(self.groups, each),
            scale_codes=integers(self.factors) if self.factors else None,
            minimum=floats(self.groups, least) if self.minimum in ("own", "factors") else None,
            minimum_codes=integers(self.factors or self.groups) if self.minimum in ("factors", "zero") else None,
            coding=self.coding,
        )
        return KernelInputs((jax.device_put(x), weight), {"activations": self.activations})


CASES = (
    Case("q4_1_2_rows", 2, 960, 576, "4", 32, minimum="own"),
    Case("q4_1_float_5_rows", 5, 576, 1536, "4", 32, minimum="own", activations="float", quick=False),
    Case("q4_0_15_rows", 15, 576, 1536, "4", 32, quick=False),
    Case("q4_0_float_15_rows", 15, 576, 1536, "4", 32, activations="float"),
    Case("q8_0_32_rows", 32, 1536, 576, "8", 32),
    Case("q8_0_float_3_rows", 3, 1536, 576, "8", 32, activations="float", quick=False),
    Case("q5_0_4_rows", 4, 576, 576, "5", 32, quick=False),
    Case("q5_1_float_4_rows", 4, 576, 576, "5", 32, minimum="own", activations="float", quick=False),
    Case("q4_k_8_rows", 8, 640, 2048, "4", 256, 32, "factors", quick=False),
    Case("q4_k_float_8_rows", 8, 640, 2048, "4", 256, 32, "factors", "float", quick=False),
    Case("q5_k_9_rows", 9, 640, 2048, "5", 256, 32, "factors", quick=False),
    Case("q6_k_7_rows", 7, 640, 2048, "6", 256, 16),
    Case("q6_k_float_70_rows", 70, 640, 2048, "6", 256, 16, activations="float", quick=False),
    Case("q2_k_2_rows", 2, 640, 512, "2", 256, 16, "factors", quick=False),
    Case("q3_k_2_rows", 2, 640, 512, "3", 256, 16, quick=False),
    Case("iq4_xs_2_rows", 2, 640, 512, "iq4", 256, 32, quick=False),
    Case("iq4_nl_float_2_rows", 2, 640, 512, "iq4", 32, activations="float", quick=False),
    Case("mxfp4_2_rows", 2, 640, 512, "fp4", 32, scale="bfloat16", quick=False),
    Case("int4_8_rows", 8, 1536, 576, "4", 64, minimum="zero", activations="float", scale="bfloat16", quick=False),
    Case("int8_8_rows", 8, 1536, 576, "8", 576, activations="float", scale="float32", quick=False),
    Case("q4_k_256_rows_8b", 256, 6144, 4096, "4", 256, 32, "factors", quick=False),
)
