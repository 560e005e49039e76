"""Shapes of Qwen3-Next, Qwen3.5 and Granite 4 on which the gated delta rule is tested and timed, with hostile inputs.

States that no row has, and those of rows that start from zeros, hold numbers far from the others. Some keys are equal,
as those of repeated tokens are. Tokens of padding hold NaN.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import KernelInputs

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """One batch shape: K key heads, H value heads, heads of D and V numbers, the tokens of each row, and which rows
    start from zeros.
    """

    name: str
    K: int
    H: int
    rows: tuple[int, ...]
    fresh: tuple[int, ...] = ()
    D: int = 128
    V: int = 128
    padding_rows: int = 0
    padding_tokens: int = 0
    corrects: bool = True
    quick: bool = True

    @property
    def decode(self) -> bool:
        return set(self.rows) == {1} and not self.padding_tokens

    @property
    def tolerance(self) -> float:
        # Sums of 128 products of about 1 in another order, over some hundred tokens.
        return 2e-4

    @property
    def flops(self) -> int:
        """A token reads its state twice, and writes it once."""
        return 6 * sum(self.rows) * self.H * self.D * self.V

    @property
    def bytes_moved(self) -> int:
        """Each state once in and once out; queries, keys, values and results once."""
        tokens = sum(self.rows)
        return 4 * (2 * len(self.rows) * self.H * self.D * self.V + 2 * tokens * (self.K * self.D + self.H * self.V))

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `gated_delta`'s parameters."""
        rng = np.random.default_rng(seed)
        S = len(self.rows) + self.padding_rows
        real = sum(self.rows)
        T = S if self.decode else real + self.padding_tokens
        N = S + 3
        q, k = (rng.standard_normal((T, self.K, self.D), np.float32) for _ in range(2))
        k[1::3] = k[:1]
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        v = rng.standard_normal((T, self.H, self.V), np.float32)
        decay = -np.exp(rng.uniform(-6, 1.5, (T, self.H))).astype(np.float32)
        beta = rng.uniform(0, 1, (T, self.H)).astype(np.float32)
        for array in (q, k, v, decay, beta):
            array[real:] = np.nan
        slots = rng.permutation(N)[:S].astype(np.int32)
        slots[len(self.rows) :] = N
        is_fresh = np.array([row in self.fresh or row >= len(self.rows) for row in range(S)])
        states = rng.standard_normal((N, self.H, self.D, self.V), np.float32)
        states[np.setdiff1d(np.arange(N), slots[: len(self.rows)][~is_fresh[: len(self.rows)]])] *= 1e6
        starts = np.minimum(np.cumsum([0, *self.rows, *[0] * self.padding_rows]), real).astype(np.int32)
        args = (q, k, v, decay, beta, states, slots, is_fresh, starts)
        return KernelInputs(
            args=tuple(map(jnp.asarray, args)), static={"corrects": self.corrects, "decode": self.decode}
        )


def _small(name: str, rows: tuple[int, ...], fresh: tuple[int, ...] = (), **fields: Any) -> Case:
    return Case(name, 2, 4, rows, fresh, D=8, V=12, **fields)


CASES: tuple[Case, ...] = (
    _small("decode", (1, 1, 1), (1,), padding_rows=1),
    _small("mixed_short_and_long", (1, 1, 5, 1, 17), (1, 4), padding_rows=2, padding_tokens=3),
    _small("tiles_of_every_end", (16, 17, 15, 2, 33, 31), (0, 3)),
    _small("long_rows", (64, 65, 63, 130), (2,), padding_rows=1, padding_tokens=1),
    _small("one_fresh_row", (100,), (0,), padding_tokens=28),
    _small("mamba_decode", (1, 1, 1), (1,), padding_rows=1, corrects=False),
    _small("mamba_mixed", (1, 70, 2, 1, 20), (1, 3), padding_tokens=3, corrects=False),
    Case("qwen3_next_decode_4", 16, 32, (1,) * 4, (2,)),
    Case("qwen3_next_tp8_mixed", 2, 4, (1, 1, 90, 1), (2,), padding_tokens=2),
    Case("qwen3_next_decode_32", 16, 32, (1,) * 32, quick=False),
    Case("qwen3_next_prefill_512", 16, 32, (512,), (0,), quick=False),
    Case("granite_4_tiny_mixed", 1, 48, (*[1] * 8, 300), (8,), V=64, corrects=False, quick=False),
    Case("qwen3_5_dense_mixed", 16, 48, (*[1] * 12, 200, 44), (12,), quick=False),
)
