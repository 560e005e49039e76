"""Sets of tokens as rows of bits, u32[ceil(V / 32)]: bit t % 32 of word t // 32 stands for token t."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jserve.protocol import SamplingParams

Bits = NDArray[np.uint32]

_BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)


def num_words(vocab_size: int) -> int:
    """Words of one row."""
    return -(-vocab_size // 32)


def all_tokens(vocab_size: int, rows: int = 1) -> Bits:
    """u32[rows, ceil(V / 32)] of every token. The bits beyond the vocabulary are set as well."""
    return np.full((rows, num_words(vocab_size)), 0xFFFFFFFF, np.uint32)


def bits_of(tokens: Iterable[int], vocab_size: int) -> Bits:
    """The row of exactly these tokens; ids that the vocabulary does not have are left out."""
    row = np.zeros(num_words(vocab_size) * 32, np.uint8)
    ids = np.fromiter(tokens, np.int64)
    row[ids[(ids >= 0) & (ids < vocab_size)]] = 1
    return np.packbits(row, bitorder="little").view(np.uint32)


def as_mask(row: Bits, vocab_size: int) -> NDArray[np.bool_]:
    """bool[V] of a row."""
    return np.unpackbits(row.view(np.uint8), bitorder="little")[:vocab_size].astype(np.bool_)


def contains(row: Bits, token: int) -> bool:
    return bool(row[token >> 5] & _BIT[token & 31])


def remove(row: Bits, token: int) -> None:
    row[token >> 5] &= ~_BIT[token & 31]


def keep_only(row: Bits, token: int) -> None:
    row.fill(0)
    row[token >> 5] = _BIT[token & 31]


def is_empty(row: Bits, vocab_size: int) -> bool:
    """Whether a row has no token of the vocabulary."""
    last = row[-1] & np.uint32(0xFFFFFFFF >> (-vocab_size % 32))
    return not (last or row[:-1].any())


def without(row: Bits, banned: Bits, vocab_size: int) -> Bits:
    """`row` less `banned`, or `row` itself where no token would be left."""
    rest = row & ~banned
    return row if is_empty(rest, vocab_size) else rest


def fixed_tokens(params: SamplingParams, vocab_size: int) -> Bits:
    """The tokens that a request allows whatever was generated: `allowed_token_ids`, less its one-token bad words."""
    allowed = params.allowed_token_ids
    row = bits_of(allowed, vocab_size) if allowed else all_tokens(vocab_size)[0]
    forbidden = [word[0] for word in params.bad_words if len(word) == 1]
    return row & ~bits_of(forbidden, vocab_size) if forbidden else row
