"""Shapes of real models on which products with float weights are tested and timed."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .. import KernelInputs

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """T rows times a weight of N outputs and K inputs."""

    name: str
    T: int
    N: int
    K: int
    dtype: str = "uint16"
    quick: bool = True
    tolerance: float = 2e-5
    """Float32 sums in another order; results are of order 1."""

    @property
    def flops(self) -> int:
        return 2 * self.T * self.N * self.K

    @property
    def bytes_moved(self) -> int:
        """x, the weight and the result once."""
        return 4 * self.T * (self.K + self.N) + self.N * self.K * jnp.dtype(self.dtype).itemsize

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `dense_matmul`'s parameters."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.T, self.K), np.float32)
        weight = rng.standard_normal((self.N, self.K), np.float32) * np.float32(self.K**-0.5)
        if self.dtype == "uint16":
            weight = weight.astype(ml_dtypes.bfloat16).view(np.uint16)
        return KernelInputs((jax.device_put(x), jax.device_put(weight)), {})


CASES = (
    Case("bits_1_row", 1, 960, 576),
    Case("bits_5_rows", 5, 576, 1536),
    Case("bits_32_rows", 32, 3072, 576),
    Case("bits_odd_outputs", 13, 1027, 576),
    Case("f32_1_row", 1, 960, 576, "float32"),
    Case("f32_8_rows", 8, 1536, 576, "float32"),
    Case("f32_odd_outputs", 37, 333, 64, "float32"),
    Case("bits_256_rows_8b", 256, 6144, 4096, quick=False),
    Case("f32_head", 8, 49152, 576, "float32", quick=False),
)
