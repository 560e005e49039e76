"""Arrays of one byte an element, read in words of two, so that no offset into them wraps.

Pallas' Triton lowering counts offsets in elements, with 32 bits for arrays of up to 2^32 bytes, and pointers take them
as signed: past 2^31 elements of one byte a kernel would read before the array. Elements of two bytes reach 2^32 bytes
with 2^31, and of larger arrays offsets have 64 bits. XLA:GPU makes no copy of a view; a test asserts it.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["as_words", "bytes_of", "is_word"]

_BYTES = {jnp.dtype("int16"): jnp.int8, jnp.dtype("uint16"): jnp.uint8}


def as_words(array: jax.Array) -> jax.Array:
    """[..., n] of one byte an element to [..., n / 2] of the same memory: of int8 int16, else uint16.

    A word's low byte is its first element. n is even.
    """
    word = jnp.int16 if array.dtype == jnp.int8 else jnp.uint16
    return lax.bitcast_convert_type(array.reshape(*array.shape[:-1], -1, 2), word)


def bytes_of(words: jax.Array) -> jax.Array:
    """What a block of such words holds, [..., 2 n] of int8 or uint8; inside a kernel it never leaves the registers."""
    byte = _BYTES[words.dtype]
    high = lax.shift_right_logical(words, jnp.asarray(8, words.dtype))
    return jnp.stack([words.astype(byte), high.astype(byte)], axis=-1).reshape(*words.shape[:-1], -1)


def is_word(dtype: jnp.dtype) -> bool:
    """Whether an array is of such words."""
    return jnp.dtype(dtype) in _BYTES
