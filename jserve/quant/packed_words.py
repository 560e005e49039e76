"""Codes of 4 and 8 bits in words of 32, as checkpoints pack them, to the bytes of `QuantizedWeight`.

Words are little-endian and their first code lies lowest: along the packed axis their bytes are already codes of 8
bits, or pairs of 4.
"""

import numpy as np

from jserve.quant.rounding import unpack_pairs
from jserve.quant.scheme import Array


def packed_bytes(words: Array, bits: int) -> Array:
    """i32[rows, words] to int8 [rows, codes] about their middle, or u8[rows, codes / 2] pairs."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return raw if bits == 4 else (raw ^ 0x80).view(np.int8)


def codes(words: Array, bits: int) -> Array:
    """i32[rows, words] to u8[rows, codes]."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return unpack_pairs(raw) if bits == 4 else raw


def words_of(part: slice, bits: int) -> tuple[slice, slice]:
    """The words that hold some codes, and where in these the codes lie."""
    per_word = 32 // bits
    first = part.start // per_word
    return slice(first, -(-part.stop // per_word)), slice(part.start - first * per_word, part.stop - first * per_word)


def stored_zero(zero: Array, bits: int) -> Array:
    """Zero points of unsigned codes as `QuantizedWeight` has them: about the middle where the values are."""
    return (zero.astype(np.int16) - (128 if bits == 8 else 0)).astype(np.int8)
