"""Blocks of GGML's quantized types, taken apart into codes, scales and minimums, nothing rounded.

Layouts: ggml-common.h and ggml-quants.c of llama.cpp. Each function takes u8[n, bytes of a block].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jserve.quant.packing import Unpacked
from jserve.quant.scheme import Array


@dataclass(frozen=True, slots=True)
class BlockForm:
    """What a block of `values` values in `size` bytes becomes."""

    values: int
    size: int
    coding: str
    """One of `CODINGS`."""
    take_apart: Callable[[Array], Unpacked]
    halves: tuple[int, ...]
    """Where a block has float16 numbers: its scale, its minimum."""
    factors: int = 0
    """Groups of a block that have an integer beside the block's scale; 0: the block is one group."""
    minimum: bool = False
    scale_dtype: str = "float16"


def _halves(blocks: Array, start: int) -> Array:
    """f16[n, 1]"""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _nibbles(packed: Array) -> Array:
    """u8[n, b] to u8[n, 2 b]: the low halves first."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fives(high: Array, low: Array) -> Array:
    """u8[n, 4] of fifth bits and u8[n, 16] of nibbles to u8[n, 32]."""
    return _nibbles(low) | (np.unpackbits(high, axis=1, bitorder="little") << 4)


def _q4_0(blocks: Array) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 2:]), _halves(blocks, 0))


def _q4_1(blocks: Array) -> Unpacked:
    return Unpacked(_nibbles(blocks[:, 4:]), _halves(blocks, 0), minimum=_halves(blocks, 2))


def _q5_0(blocks: Array) -> Unpacked:
    return Unpacked(_fives(blocks[:, 2:6], blocks[:, 6:]), _halves(blocks, 0))


def _q5_1(blocks: Array) -> Unpacked:
    return Unpacked(_fives(blocks[:, 4:8], blocks[:, 8:]), _halves(blocks, 0), minimum=_halves(blocks, 2))


def _q8_0(blocks: Array) -> Unpacked:
    return Unpacked(blocks[:, 2:] ^ 0x80, _halves(blocks, 0))


def _q2_k(blocks: Array) -> Unpacked:
    pairs, packed = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 1, 32)
    codes = (packed >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    return Unpacked(
        codes.reshape(len(blocks), -1),
        _halves(blocks, 80),
        (pairs & 15).view(np.int8),
        -_halves(blocks, 82),
        (pairs >> 4).view(np.int8),
    )


def _q3_k(blocks: Array) -> Unpacked:
    thirds, packed, scales = blocks[:, None, :32], blocks[:, 32:96].reshape(-1, 2, 1, 32), blocks[:, 96:108]
    low = (packed >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    third = (thirds >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = low.reshape(len(blocks), -1) | (third.reshape(len(blocks), -1) << 2)
    both, top = _nibbles(scales[:, :8]), scales[:, None, 8:]
    upper = (top >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    factors = (both | (upper.reshape(len(blocks), -1) << 4)).view(np.int8) - np.int8(32)
    return Unpacked(codes, _halves(blocks, 108), factors)


def _k_factors(blocks: Array) -> tuple[Array, Array]:
    """i8[n, 8] of scales and of minimums: eight pairs of 6 bits in 12 bytes."""
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    least = np.concatenate([mid & 0x3F, (high >> 4) | ((mid >> 2) & 0x30)], axis=1)
    return scale.view(np.int8), least.view(np.int8)


def _q4_k(blocks: Array) -> Unpacked:
    scale, least = _k_factors(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), -1)
    return Unpacked(codes, _halves(blocks, 0), scale, -_halves(blocks, 2), least)


def _q5_k(blocks: Array) -> Unpacked:
    scale, least = _k_factors(blocks)
    codes = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(len(blocks), 8, 32)
    codes |= ((blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1) << 4
    return Unpacked(codes.reshape(len(blocks), -1), _halves(blocks, 0), scale, -_halves(blocks, 2), least)


def _q6_k(blocks: Array) -> Unpacked:
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    codes = _nibbles(low).reshape(-1, 2, 4, 32)
    codes |= ((high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3) << 4
    return Unpacked(codes.reshape(len(blocks), -1), _halves(blocks, 208), blocks[:, 192:208].view(np.int8))


def _iq4_xs(blocks: Array) -> Unpacked:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    upper = ((high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8)
    factors = (low | (upper << 4)).view(np.int8) - np.int8(32)
    return Unpacked(_nibbles(blocks[:, 8:].reshape(-1, 16)).reshape(len(blocks), -1), _halves(blocks, 0), factors)


def _mxfp4(blocks: Array) -> Unpacked:
    """GGML halves the power of two of each block, and doubles the values of its codes."""
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return Unpacked(_nibbles(blocks[:, 1:]), scale.astype(ml_dtypes.bfloat16))


FORMS: Mapping[str, BlockForm] = {
    "Q4_0": BlockForm(32, 18, "4", _q4_0, (0,)),
    "Q4_1": BlockForm(32, 20, "4", _q4_1, (0, 2), minimum=True),
    "Q5_0": BlockForm(32, 22, "5", _q5_0, (0,)),
    "Q5_1": BlockForm(32, 24, "5", _q5_1, (0, 2), minimum=True),
    "Q8_0": BlockForm(32, 34, "8", _q8_0, (0,)),
    "Q2_K": BlockForm(256, 84, "2", _q2_k, (80, 82), 16, minimum=True),
    "Q3_K": BlockForm(256, 110, "3", _q3_k, (108,), 16),
    "Q4_K": BlockForm(256, 144, "4", _q4_k, (0, 2), 8, minimum=True),
    "Q5_K": BlockForm(256, 176, "5", _q5_k, (0, 2), 8, minimum=True),
    "Q6_K": BlockForm(256, 210, "6", _q6_k, (208,), 16),
    "IQ4_NL": BlockForm(32, 18, "iq4", _q4_0, (0,)),
    "IQ4_XS": BlockForm(256, 136, "iq4", _iq4_xs, (0,), 8),
    "MXFP4": BlockForm(32, 17, "fp4", _mxfp4, (), scale_dtype="bfloat16"),
}
"""By GGML's name: the types that are kept as they are."""


def halves_of(blocks: Array, kind: str) -> list[Array]:
    """float16 scales and minimums of u8[..., bytes of a block]."""
    return [_halves(blocks.reshape(-1, blocks.shape[-1]), start) for start in FORMS[kind].halves]


def take_apart(blocks: Array, kind: str) -> Unpacked:
    """u8[outputs, blocks, bytes of a block] as codes and scales of its outputs."""
    outputs = len(blocks)
    flat = FORMS[kind].take_apart(blocks.reshape(-1, blocks.shape[-1]))

    def rows(array: Array | None) -> Array | None:
        return None if array is None else array.reshape(outputs, -1)

    return Unpacked(
        flat.codes.reshape(outputs, -1),
        flat.scale.reshape(outputs, -1),
        rows(flat.scale_codes),
        rows(flat.minimum),
        rows(flat.minimum_codes),
    )
