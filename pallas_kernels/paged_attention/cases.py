"""Shapes of real models on which paged attention is tested and timed, with hostile random inputs.

Pages are handed out in random order; pages nobody owns, those before a row's window and the tail of each last page
hold NaN; dead entries of the page table point anywhere, in range or not. An implementation that reads what it must
not shows it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .. import KernelInputs

__all__ = ["CASES", "Case", "Row"]

# Largest |error| / max(1, |reference|) of a correct implementation on unit-normal inputs. float32 differs by
# summation order alone; the 16-bit types also round the softmax weights and the output (half an ulp of the
# output is 2^-9 for bfloat16 and 2^-12 for float16, and the rounded weights add about as much again).
TOLERANCES = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.2e-2}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a step: `query_len` new tokens at the end of `context_len` tokens."""

    query_len: int
    context_len: int


@dataclass(frozen=True, slots=True)
class Case:
    """One batch shape: H query heads, K KV heads, head dim D, pages of B tokens, and the rows."""

    name: str
    H: int
    K: int
    D: int
    B: int
    rows: tuple[Row, ...]
    dtype: str = "bfloat16"
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    kv: str | None = None  # "int8" or "fp8": keys and values in 8 bits with scales
    padding_rows: int = 0
    padding_tokens: int = 0
    spare_entries: int = 1  # page table entries beyond the longest row
    quick: bool = True

    @property
    def decode(self) -> bool:
        return all(row.query_len == 1 for row in self.rows) and self.padding_tokens == 0

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]

    @property
    def flops(self) -> int:
        """Multiplications and additions of q k^T and of weights times v, for the pairs not masked."""
        return sum(4 * self.H * self.D * self._pairs(row) for row in self.rows)

    @property
    def bytes_moved(self) -> int:
        """q and the output once, and each live key and value once."""
        queries = sum(row.query_len for row in self.rows)
        keys = sum(row.context_len - self._first_visible(row) for row in self.rows)
        width = jnp.dtype(self.dtype).itemsize
        head = self.D * width if self.kv is None else self.D + 4
        return 2 * queries * self.H * self.D * width + 2 * keys * self.K * head

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `paged_attention`'s parameters."""
        rng = np.random.default_rng(seed)
        S = len(self.rows) + self.padding_rows
        owned = [-(-row.context_len // self.B) for row in self.rows]
        N = sum(owned) + 2
        page_table = self._garbage(rng, (S, max(owned) + self.spare_entries), N)
        k_pages, v_pages = (np.full((N, self.K, self.B, self.D), np.nan, np.float32) for _ in range(2))
        free = rng.permutation(N)
        for s, (row, pages) in enumerate(zip(self.rows, owned, strict=True)):
            ids, free = free[:pages], free[pages:]
            page_table[s, :pages] = ids
            for i, page in enumerate(ids):
                if (i + 1) * self.B <= self._first_visible(row):
                    continue  # by now it could be another row's
                live = min(self.B, row.context_len - i * self.B)
                k_pages[page, :, :live] = rng.standard_normal((self.K, live, self.D), np.float32)
                v_pages[page, :, :live] = rng.standard_normal((self.K, live, self.D), np.float32)
        lengths = [row.query_len for row in self.rows] + [0] * self.padding_rows
        T = S if self.decode else sum(lengths) + self.padding_tokens
        q = rng.standard_normal((T, self.H, self.D), np.float32)
        context_len = [row.context_len for row in self.rows] + [0] * self.padding_rows
        held = [jnp.asarray(array, self.dtype) for array in (k_pages, v_pages)]
        scales: list[jax.Array] = []
        if self.kv is not None:
            (k, k_scale), (v, v_scale) = (_in_8_bits(rng, array, self.kv) for array in (k_pages, v_pages))
            held, scales = [k, v], [k_scale, v_scale]
        integers = (page_table, np.concatenate([[0], np.cumsum(lengths)]), np.array(context_len))
        # Around the largest score of a row or far from it: the sum must hold up to a sink that outweighs it.
        sinks = jnp.asarray(rng.normal(2, 4, self.H), self.dtype) if self.sinks else None
        extras = [sinks, *scales] if scales else [] if sinks is None else [sinks]
        return KernelInputs(
            args=(
                jnp.asarray(q, self.dtype),
                *held,
                *(jnp.asarray(array, jnp.int32) for array in integers),
                *extras,
            ),
            static=self._static,
        )

    def shapes(self) -> KernelInputs:
        """The shapes and types of what `make` gives."""
        S = len(self.rows) + self.padding_rows
        owned = [-(-row.context_len // self.B) for row in self.rows]
        T = S if self.decode else sum(row.query_len for row in self.rows) + self.padding_tokens
        pool, dtype = (sum(owned) + 2, self.K, self.B, self.D), jnp.dtype(self.dtype)
        struct = jax.ShapeDtypeStruct
        extras: tuple[Any, ...]
        sinks = struct((self.H,), dtype) if self.sinks else None
        if self.kv is None:
            held, extras = [struct(pool, dtype)] * 2, (() if sinks is None else (sinks,))
        else:
            held = [struct(pool, jnp.int8 if self.kv == "int8" else jnp.uint8)] * 2
            extras = (sinks, *[struct((*pool[:3], 1), jnp.float32)] * 2)
        integers = [(S, max(owned) + self.spare_entries), (S + 1,), (S,)]
        return KernelInputs(
            args=(
                struct((T, self.H, self.D), dtype),
                *held,
                *(struct(shape, jnp.int32) for shape in integers),
                *extras,
            ),
            static=self._static,
        )

    @property
    def _static(self) -> dict[str, Any]:
        return {
            "scale": self.D**-0.5,
            "sliding_window": self.sliding_window,
            "soft_cap": self.soft_cap,
            "decode": self.decode,
        }

    def _pairs(self, row: Row) -> int:
        window = self.sliding_window or row.context_len
        first = row.context_len - row.query_len
        return sum(min(position + 1, window) for position in range(first, row.context_len))

    def _first_visible(self, row: Row) -> int:
        if self.sliding_window is None:
            return 0
        return max(0, row.context_len - row.query_len + 1 - self.sliding_window)

    @staticmethod
    def _garbage(rng: np.random.Generator, shape: tuple[int, int], N: int) -> np.ndarray:
        return rng.choice(np.array([-1, -(2**31), 2**31 - 1, N, N + 7, 0, N - 1], np.int64), shape).astype(np.int32)


def _in_8_bits(rng: np.random.Generator, pages: np.ndarray, kind: str) -> tuple[jax.Array, jax.Array]:
    """Codes and scales whose product is near f32[N, K, B, D], token by token; where that is NaN, the worst that a
    page can hold. Scales differ by far more than those of real tokens, so that no other one will do.
    """
    dead = np.isnan(pages[..., :1])
    sizes = np.exp2(rng.integers(-3, 2, (*pages.shape[:3], 1))).astype(np.float32)
    limit, unit = (127, 40) if kind == "int8" else (448, 100)
    codes = np.clip(np.nan_to_num(pages) * unit, -limit, limit)
    if kind == "int8":
        held = np.where(dead, -128, np.rint(codes)).astype(np.int8)
    else:
        held = np.where(dead, 0x7F, codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).astype(np.uint8)
    return jnp.asarray(held), jnp.asarray(np.where(dead, np.nan, sizes / unit), jnp.float32)


def _rows(*pairs: tuple[int, int]) -> tuple[Row, ...]:
    return tuple(Row(*pair) for pair in pairs)


def _decode(*context_lens: int) -> tuple[Row, ...]:
    return tuple(Row(1, context_len) for context_len in context_lens)


_MIXED = _rows((1, 37), (19, 19), (5, 50), (1, 1), (33, 70))

_QUICK = (
    Case("decode_gqa4_d128_b64", 8, 2, 128, 64, _decode(1, 64, 65, 200), padding_rows=2),
    Case("decode_smollm2_b16", 9, 3, 64, 16, _decode(15, 16, 90), padding_rows=1),
    Case("decode_mha_f16", 4, 4, 64, 32, _decode(40, 7), "float16"),
    Case("decode_f32_d80", 4, 2, 80, 16, _decode(33, 64), "float32"),
    Case("decode_split_f32", 4, 2, 64, 16, _decode(300, 1, 17), "float32", padding_rows=1),
    Case("decode_window_f32", 4, 2, 64, 16, _decode(10, 64, 121), "float32", sliding_window=24),
    Case("decode_window_soft_cap_d256", 4, 2, 256, 16, _decode(70, 20), sliding_window=33, soft_cap=5.0),
    Case("decode_mqa_g20_d96_b128", 20, 1, 96, 128, _decode(130, 260), "float32"),
    Case(
        "prefill_gqa4_d128_b64",
        8,
        2,
        128,
        64,
        _rows(
            (70, 70),
        ),
        padding_tokens=10,
    ),
    Case(
        "prefill_chunk_f32",
        4,
        2,
        64,
        16,
        _rows((20, 75), (40, 40)),
        "float32",
        padding_rows=2,
        padding_tokens=4,
    ),
    Case("mixed_smollm2_b16", 9, 3, 64, 16, _MIXED, padding_rows=3, padding_tokens=5),
    Case("mixed_f32_d96_g7_b32", 7, 1, 96, 32, _MIXED, "float32", padding_rows=1, padding_tokens=1),
    Case("mixed_window_f32", 4, 2, 64, 16, _MIXED, "float32", sliding_window=9, padding_tokens=3),
    Case("mixed_window_soft_cap_d256", 4, 2, 256, 16, _rows((9, 30), (1, 44)), sliding_window=12, soft_cap=5.0),
    Case("decode_sinks_f32", 8, 2, 64, 16, _decode(10, 64, 1), "float32", padding_rows=1, sinks=True),
    Case("decode_split_window_sinks_f32", 8, 1, 64, 16, _decode(900), "float32", sliding_window=300, sinks=True),
    Case("mixed_sinks_f32", 10, 2, 64, 16, _MIXED, "float32", padding_rows=2, padding_tokens=3, sinks=True),
    Case("mixed_window_sinks", 8, 1, 64, 16, _MIXED, sliding_window=16, padding_rows=1, sinks=True),
    Case("decode_int8_f32", 8, 2, 64, 16, _decode(70, 1, 16), "float32", padding_rows=1, kv="int8"),
    Case("decode_split_fp8_window_sinks", 8, 1, 128, 64, _decode(900), sliding_window=300, sinks=True, kv="fp8"),
    Case("mixed_fp8_f32_d80", 4, 2, 80, 16, _MIXED, "float32", padding_rows=1, padding_tokens=3, kv="fp8"),
    Case("mixed_int8_window_soft_cap", 8, 2, 64, 32, _MIXED, sliding_window=9, soft_cap=5.0, kv="int8"),
    Case(
        "prefill_mha_f16_d80",
        2,
        2,
        80,
        16,
        _rows(
            (30, 46),
        ),
        "float16",
    ),
)

_FULL = (
    Case("llama3_8b_decode_1x8k", 32, 8, 128, 64, _decode(8192), quick=False),
    Case("llama3_8b_decode_8x1k", 32, 8, 128, 64, _decode(*[1024] * 8), quick=False),
    Case("llama3_8b_decode_32x1k", 32, 8, 128, 64, _decode(*[1024] * 32), quick=False),
    Case("llama3_8b_decode_128x1k", 32, 8, 128, 64, _decode(*[1024] * 128), quick=False),
    # In an engine for contexts of 131,072 tokens.
    Case(
        "llama3_8b_decode_256x1k_of_128k",
        32,
        8,
        128,
        64,
        _decode(*[1024] * 256),
        spare_entries=2032,
        quick=False,
    ),
    Case("llama3_8b_decode_64x8k", 32, 8, 128, 64, _decode(*[8192] * 64), quick=False),
    Case(
        "llama3_8b_decode_ragged",
        32,
        8,
        128,
        64,
        _decode(*range(17, 8192, 256)),
        padding_rows=32,
        quick=False,
    ),
    Case("llama3_8b_tp8_decode_64x2k", 4, 1, 128, 64, _decode(*[2048] * 64), quick=False),
    Case("llama3_8b_prefill_2k", 32, 8, 128, 64, _rows((2048, 2048)), quick=False),
    Case("llama3_8b_tp4_prefill_8k", 8, 2, 128, 64, _rows((8192, 8192)), quick=False),
    Case("llama3_8b_prefill_chunk_512_of_8k", 32, 8, 128, 64, _rows((512, 8192)), quick=False),
    Case(
        "llama3_8b_mixed",
        32,
        8,
        128,
        64,
        (*_decode(*range(100, 4100, 125)), *_rows((480, 1500), (500, 500))),
        padding_rows=30,
        padding_tokens=12,
        quick=False,
    ),
    Case("qwen2_7b_decode_32x1k", 28, 4, 128, 64, _decode(*[1024] * 32), quick=False),
    Case("qwen3_0_6b_decode_32x1k", 16, 8, 128, 64, _decode(*[1024] * 32), quick=False),
    Case("qwen3_0_6b_prefill_2k", 16, 8, 128, 64, _rows((2048, 2048)), quick=False),
    Case("smollm2_135m_decode_32x1k", 9, 3, 64, 64, _decode(*[1024] * 32), quick=False),
    Case("smollm2_135m_prefill_2k", 9, 3, 64, 64, _rows((2048, 2048)), quick=False),
    Case("phi3_mini_mha_d96_decode_32x1k", 32, 32, 96, 64, _decode(*[1024] * 32), quick=False),
    Case("stablelm_d80_decode_32x1k_f16", 32, 32, 80, 64, _decode(*[1024] * 32), "float16", quick=False),
    Case(
        "gemma2_2b_decode_window",
        8,
        4,
        256,
        64,
        _decode(*[6000] * 16),
        sliding_window=4096,
        soft_cap=50.0,
        quick=False,
    ),
    Case(
        "gemma2_2b_prefill_window",
        8,
        4,
        256,
        64,
        _rows((1024, 6000)),
        sliding_window=4096,
        soft_cap=50.0,
        quick=False,
    ),
    Case("gpt_oss_20b_decode_32x1k", 64, 8, 64, 64, _decode(*[1024] * 32), sinks=True, quick=False),
    Case("gpt_oss_20b_prefill_window", 64, 8, 64, 64, _rows((1024, 6000)), sliding_window=128, sinks=True, quick=False),
    Case("llama3_8b_int8_decode_8x1k", 32, 8, 128, 64, _decode(*[1024] * 8), kv="int8", quick=False),
    Case("llama3_8b_int8_decode_128x1k", 32, 8, 128, 64, _decode(*[1024] * 128), kv="int8", quick=False),
    Case("llama3_8b_fp8_decode_128x1k", 32, 8, 128, 64, _decode(*[1024] * 128), kv="fp8", quick=False),
    Case("llama3_8b_int8_prefill_2k", 32, 8, 128, 64, _rows((2048, 2048)), kv="int8", quick=False),
    Case("llama3_8b_fp8_prefill_2k", 32, 8, 128, 64, _rows((2048, 2048)), kv="fp8", quick=False),
    Case(
        "gemma2_2b_fp8_prefill_window",
        8,
        4,
        256,
        64,
        _rows((1024, 6000)),
        sliding_window=4096,
        soft_cap=50.0,
        kv="fp8",
        quick=False,
    ),
    Case("mistral_7b_page16_decode_32x1k", 32, 8, 128, 16, _decode(*[1024] * 32), quick=False),
)

CASES: tuple[Case, ...] = _QUICK + _FULL
