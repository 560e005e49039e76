"""Shapes of DeepSeek's models on which latent attention is tested and timed, with hostile random inputs.

Inputs are those of paged attention with one KV head: dead places of the pages hold NaN, dead entries of the page
table point anywhere.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from .. import KernelInputs
from ..paged_attention.cases import TOLERANCES, Row
from ..paged_attention.cases import Case as PagedCase

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """One batch shape: H query heads, latents of `rank` and `rope` numbers in pages of B tokens, and the rows."""

    name: str
    H: int
    rows: tuple[Row, ...]
    rank: int = 512
    rope: int = 64
    B: int = 64
    dtype: str = "bfloat16"
    padding_rows: int = 0
    padding_tokens: int = 0
    quick: bool = True

    @property
    def decode(self) -> bool:
        return self._paged.decode

    @property
    def tolerance(self) -> float:
        # Sums of 576 products of unit numbers differ by their order alone in float32, as those of 64 do.
        return TOLERANCES[self.dtype]

    @property
    def flops(self) -> int:
        """Multiplications and additions of q k^T and of weights times latents, for the pairs not masked."""
        pairs = sum(row.query_len * (2 * row.context_len - row.query_len + 1) // 2 for row in self.rows)
        return 2 * self.H * (2 * self.rank + self.rope) * pairs

    @property
    def bytes_moved(self) -> int:
        """q and the output once, and each live latent once."""
        queries = sum(row.query_len for row in self.rows)
        keys = sum(row.context_len for row in self.rows)
        width = self.rank + self.rope
        return (queries * self.H * (width + self.rank) + keys * width) * jnp.dtype(self.dtype).itemsize

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `latent_attention`'s parameters."""
        inputs = self._paged.make(seed)
        q, pages, _, *integers = inputs.args
        static = {"rank": self.rank, "scale": inputs.static["scale"], "decode": self.decode}
        return KernelInputs(args=(q, pages, *integers), static=static)

    @property
    def _paged(self) -> PagedCase:
        return PagedCase(
            self.name,
            self.H,
            1,
            self.rank + self.rope,
            self.B,
            self.rows,
            self.dtype,
            padding_rows=self.padding_rows,
            padding_tokens=self.padding_tokens,
        )


def _rows(*pairs: tuple[int, int]) -> tuple[Row, ...]:
    return tuple(Row(*pair) for pair in pairs)


def _decode(*context_lens: int) -> tuple[Row, ...]:
    return tuple(Row(1, context_len) for context_len in context_lens)


_MIXED = _rows((1, 37), (19, 19), (5, 50), (1, 1), (33, 70))


def _small(name: str, H: int, rows: tuple[Row, ...], padding_rows: int = 0, padding_tokens: int = 0) -> Case:
    return Case(name, H, rows, 32, 8, 16, "float32", padding_rows, padding_tokens)


_QUICK = (
    Case("decode_h16", 16, _decode(1, 64, 130), padding_rows=1),
    Case("decode_h80", 80, _decode(20, 16), 32, 8, 16, padding_rows=1),
    Case("decode_f16_h20_b16", 20, _decode(40, 7), 128, 16, 16, "float16"),
    _small("decode_split_f32", 6, _decode(300, 1, 17), padding_rows=1),
    Case("prefill_h16", 16, _rows((9, 70)), padding_tokens=3),
    _small("mixed_f32", 4, _MIXED, padding_rows=3, padding_tokens=5),
    Case("mixed_f32_h7_rope24", 7, _MIXED, 64, 24, 32, "float32", padding_rows=1, padding_tokens=1),
    _small("mixed_f32_h80", 80, _rows((1, 37), (3, 20)), padding_tokens=1),
)

_FULL = (
    Case("deepseek_v2_lite_decode_8x1k", 16, _decode(*[1024] * 8), quick=False),
    Case("deepseek_v2_lite_decode_128x1k", 16, _decode(*[1024] * 128), quick=False),
    Case("deepseek_v2_lite_prefill_2k", 16, _rows((2048, 2048)), quick=False),
    Case("deepseek_v2_lite_prefill_chunk_512_of_8k", 16, _rows((512, 8192)), quick=False),
    # With 128 heads over eight devices the shapes are those of V2-Lite; contexts are longer.
    Case("deepseek_v3_tp8_decode_1x32k", 16, _decode(32768), quick=False),
    Case("deepseek_v3_tp8_decode_64x8k", 16, _decode(*[8192] * 64), quick=False),
    Case("deepseek_v3_tp8_decode_ragged", 16, _decode(*range(17, 8192, 256)), padding_rows=32, quick=False),
    Case(
        "deepseek_v3_tp8_mixed",
        16,
        (*_decode(*range(100, 4100, 125)), *_rows((480, 1500), (500, 500))),
        padding_rows=30,
        padding_tokens=12,
        quick=False,
    ),
    Case("deepseek_v3_tp1_decode_32x1k", 128, _decode(*[1024] * 32), quick=False),
    Case("deepseek_v3_tp1_prefill_512", 128, _rows((512, 512)), quick=False),
    Case("deepseek_v3_tp4_decode_32x1k", 32, _decode(*[1024] * 32), quick=False),
)

CASES: tuple[Case, ...] = _QUICK + _FULL
