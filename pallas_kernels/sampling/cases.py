"""Vocabularies and batches of real models on which the sampler's threshold is tested and timed.

Masses are whole multiples of a power of two, few enough that every sum is exact: an implementation either finds the
token where the sum is reached or it does not, in whatever order it adds.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .. import KernelInputs

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """S rows over V tokens. `top_k` and `top_p` are taken in turn by the rows."""

    name: str
    S: int
    V: int
    top_k: tuple[int, ...] = (1, 20, 50, 1 << 30)
    top_p: tuple[float, ...] = (0.875, 1.0, 0.5)
    quick: bool = True

    @property
    def tolerance(self) -> float:
        """The threshold is one of the masses, which are at least 2^-8 apart, or it is wrong."""
        return 1e-7

    @property
    def flops(self) -> int:
        """A comparison and a sum for each element, for each of the two filters."""
        return 4 * self.S * self.V

    @property
    def bytes_moved(self) -> int:
        """The masses once."""
        return 4 * self.S * self.V + 12 * self.S

    def shapes(self) -> KernelInputs:
        """As `make` gives them, without arrays."""
        rows = (self.S,)
        args = (
            jax.ShapeDtypeStruct((self.S, self.V), jnp.float32),
            jax.ShapeDtypeStruct(rows, jnp.int32),
            jax.ShapeDtypeStruct(rows, jnp.float32),
        )
        return KernelInputs(args, {})

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `kept_threshold`'s parameters: a few large masses, many equal ones, zeros."""
        rng = np.random.default_rng(seed)
        drawn = rng.pareto(1.5, (self.S, self.V)) * 2
        mass = np.minimum(np.floor(drawn), 255).astype(np.float32) / 256
        sums = mass.sum(axis=-1, dtype=np.float64) * 256
        assert (sums < 2**24).all(), "sums are not exact"
        args = (
            mass,
            np.resize(self.top_k, self.S).astype(np.int32),
            np.resize(self.top_p, self.S).astype(np.float32),
        )
        return KernelInputs(args, {})


CASES: tuple[Case, ...] = (
    Case("one_row", 1, 3000),
    Case("top_k_alone", 4, 1500, top_p=(1.0,)),
    Case("top_p_alone", 5, 2048, top_k=(1 << 30,), top_p=(0.125, 0.5, 0.875, 0.9375)),
    Case("both_odd_vocabulary", 12, 1031),
    Case("both_off", 2, 1030, top_k=(1 << 30,), top_p=(1.0,)),
    Case("smaller_than_a_block", 6, 131),
    Case("smollm2_32x49k", 32, 49_152, quick=False),
    Case("llama3_1x128k", 1, 128_256, quick=False),
    Case("llama3_256x128k", 256, 128_256, quick=False),
    Case("qwen3_64x152k", 64, 151_936, quick=False),
)
