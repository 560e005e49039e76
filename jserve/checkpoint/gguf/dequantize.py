"""Block formats of GGML: how many bytes a block takes, and blocks to float32 values.

The formats that most files use are decoded here, in chunks that stay in the processor's cache whatever the
tensor's shape; rarer ones go to the `gguf` package, whose values this matches bit for bit. Needs that package
(0.4 s to import) only for the rarer ones. Layouts: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_CHUNK_VALUES = 65_536
"""Values decoded at a time: 256 KiB of float32, which stays in a second-level cache."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """A GGML type: `values` values in `size` bytes. `dtype` is set where nothing needs decoding."""

    name: str
    values: int
    size: int
    dtype: np.dtype[Any] | None = None


_PLAIN = {
    0: BlockType("F32", 1, 4, np.dtype(np.float32)),
    1: BlockType("F16", 1, 2, np.dtype(np.float16)),
    24: BlockType("I8", 1, 1, np.dtype(np.int8)),
    25: BlockType("I16", 1, 2, np.dtype(np.int16)),
    26: BlockType("I32", 1, 4, np.dtype(np.int32)),
    27: BlockType("I64", 1, 8, np.dtype(np.int64)),
    28: BlockType("F64", 1, 8, np.dtype(np.float64)),
    30: BlockType("BF16", 1, 2, np.dtype(ml_dtypes.bfloat16)),
}
MXFP4 = BlockType("MXFP4", 32, 17)
MXFP4_PAIRS = BlockType("MXFP4 (pairs)", 32, 17)
"""Ollama's first files of gpt-oss: two neighbours in a byte, as published, where GGML has values of both halves.
The number was that of a format which no GGUF file ever had.
"""
_OWN = {
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    4: MXFP4_PAIRS,
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    39: MXFP4,
}


def block_type(type_id: int) -> BlockType | None:
    """The type with this GGML number, or None where neither we nor the `gguf` package can decode it."""
    known = _PLAIN.get(type_id) or _OWN.get(type_id)
    return known or _rare_block_type(type_id)


def dequantize(blocks: Bytes, kind: BlockType) -> Floats:
    """Decode u8[n, kind.size] into f32[n, kind.values]."""
    out = np.empty((len(blocks), kind.values), np.float32)
    decode = _DECODERS.get(kind.name) or _rare_decoder(kind)
    step = max(1, _CHUNK_VALUES // kind.values)
    for start in range(0, len(blocks), step):
        decode(blocks[start : start + step], out[start : start + step])
    return out


def _scales(blocks: Bytes, start: int, count: int = 1) -> Floats:
    """`count` float16 numbers from byte `start` of each block, as f32[n, count]."""
    raw = np.ascontiguousarray(blocks[:, start : start + 2 * count])
    return raw.view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, out: Floats) -> None:
    """u8[n, 16] into f32[n, 32]: the low halves first, then the high ones."""
    half = packed.shape[-1]
    out[..., :half] = packed & 0x0F
    out[..., half:] = packed >> 4


def _decode_q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8.0
    out *= _scales(blocks, 0)


def _decode_q4_1(blocks: Bytes, out: Floats) -> None:
    scale = _scales(blocks, 0, 2)
    _nibbles(blocks[:, 4:], out)
    out *= scale[:, :1]
    out += scale[:, 1:]


def _fives(high: Bytes, low: Bytes, out: Floats) -> None:
    """u8[n, 4] of fifth bits and u8[n, 16] of nibbles into f32[n, 32]."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    fifth <<= 4
    fifth[:, :16] |= low & 0x0F
    fifth[:, 16:] |= low >> 4
    out[...] = fifth


def _decode_q5_0(blocks: Bytes, out: Floats) -> None:
    _fives(blocks[:, 2:6], blocks[:, 6:], out)
    out -= 16.0
    out *= _scales(blocks, 0)


def _decode_q5_1(blocks: Bytes, out: Floats) -> None:
    scale = _scales(blocks, 0, 2)
    _fives(blocks[:, 4:8], blocks[:, 8:], out)
    out *= scale[:, :1]
    out += scale[:, 1:]


def _decode_q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _scales(blocks, 0), out=out)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima f32[n, 8, 1] of Q4_K and Q5_K: eight 6-bit pairs in 12 bytes, times two float16."""
    packed = blocks[:, 4:16]
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    least = np.concatenate([mid & 0x3F, (high >> 4) | ((mid >> 2) & 0x30)], axis=1)
    both = _scales(blocks, 0, 2)
    return (both[:, :1] * scale)[..., None], (both[:, 1:] * least)[..., None]


def _decode_q4_k(blocks: Bytes, out: Floats) -> None:
    scale, least = _k_scales(blocks)
    values = out.reshape(-1, 4, 64)
    _nibbles(blocks[:, 16:].reshape(-1, 4, 32), values)
    values = out.reshape(-1, 8, 32)
    values *= scale
    values -= least


def _decode_q5_k(blocks: Bytes, out: Floats) -> None:
    scale, least = _k_scales(blocks)
    low = blocks[:, 48:].reshape(-1, 4, 32)
    fifth = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little")  # [n, 32, 8]: bit b is of group b
    quants = np.ascontiguousarray(fifth.transpose(0, 2, 1))
    quants <<= 4
    quants[:, 0::2] |= low & 0x0F
    quants[:, 1::2] |= low >> 4
    values = out.reshape(-1, 8, 32)
    np.multiply(quants, scale, out=values)
    values -= least


def _decode_q6_k(blocks: Bytes, out: Floats) -> None:
    low = blocks[:, :128].reshape(-1, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    quants = np.empty((len(blocks), 2, 4, 32), np.uint8)
    quants[:, :, 0:2] = (low & 0x0F).reshape(-1, 2, 2, 32)
    quants[:, :, 2:4] = (low >> 4).reshape(-1, 2, 2, 32)
    for group in range(4):
        quants[:, :, group] |= ((high >> (2 * group)) & 0x03) << 4
    scale = _scales(blocks, 208) * blocks[:, 192:208].view(np.int8)
    values = out.reshape(-1, 16, 16)
    values[...] = quants.reshape(-1, 16, 16)
    values -= 32.0
    values *= scale[..., None]


_E2M1_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of MXFP4's codes (OCP Microscaling Formats v1.0, section 5.3.3)."""
_E8M0_HALF = np.ldexp(np.float32(1), np.arange(256) - 128)
"""Half of each scale: the last one whole, 2**128, is past float32. OCP calls it NaN, GGML reads it as here."""


def _decode_mxfp4(blocks: Bytes, out: Floats) -> None:
    _fours(blocks, out, np.concatenate([blocks[:, 1:] & 0x0F, blocks[:, 1:] >> 4], axis=1))


def _decode_mxfp4_pairs(blocks: Bytes, out: Floats) -> None:
    _fours(blocks, out, np.stack([blocks[:, 1:] & 0x0F, blocks[:, 1:] >> 4], axis=2).reshape(-1, 32))


def _fours(blocks: Bytes, out: Floats, codes: Bytes) -> None:
    """Codes u8[n, 32] times each block's power of two."""
    np.multiply(_E2M1_TWICE[codes], _E8M0_HALF[blocks[:, :1]], out=out)


_DECODERS: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q5_1": _decode_q5_1,
    "Q8_0": _decode_q8_0,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
    MXFP4.name: _decode_mxfp4,
    MXFP4_PAIRS.name: _decode_mxfp4_pairs,
}


def _rare_block_type(type_id: int) -> BlockType | None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        kind = GGMLQuantizationType(type_id)
        values, size = GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return BlockType(kind.name, values, size)


def _rare_decoder(kind: BlockType) -> Callable[[Bytes, Floats], None]:
    from gguf import GGMLQuantizationType, dequantize

    number = GGMLQuantizationType[kind.name]

    def decode(blocks: Bytes, out: Floats) -> None:
        # As one long row: the package splits rows into groups of 16, which one-block rows make tiny.
        out[...] = dequantize(np.ascontiguousarray(blocks).reshape(1, -1), number).reshape(out.shape)

    return decode
