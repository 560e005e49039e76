"""Numbers at addresses, for functions that Numba compiles. Addresses are i64; nothing is checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector_ir import I64, pointer, prefetch_line

__all__ = ["ZERO_F32", "ZERO_I32", "ZERO_I64", "load_f32", "load_i32", "load_i64", "load_u8", "prefetch", "store"]

ZERO_I32, ZERO_I64, ZERO_F32, ZERO_U8 = np.int32(0), np.int64(0), np.float32(0), np.uint8(0)


@intrinsic
def _load(typingctx: Any, address: Any, like: Any) -> Any:
    """The number at an address, of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        kind = context.get_value_type(signature.args[1])
        return builder.load(pointer(builder, args[0], kind), align=1)

    return like(types.int64, like), code


@njit(error_model="numpy")
def load_i64(address):
    """The i64 at an address."""
    return _load(address, ZERO_I64)


@njit(error_model="numpy")
def load_i32(address):
    """The i32 at an address."""
    return _load(address, ZERO_I32)


@njit(error_model="numpy")
def load_f32(address):
    """The float32 at an address."""
    return _load(address, ZERO_F32)


@njit(error_model="numpy")
def load_u8(address):
    """The byte at an address, without a sign."""
    return _load(address, ZERO_U8)


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a number at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        builder.store(args[1], pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, value), code


@intrinsic
def prefetch(typingctx: Any, address: Any, size: Any) -> Any:
    """Fetch so many bytes into the cache, which will be read soon."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        address, size = args
        with cgutils.for_range(builder, builder.udiv(builder.add(size, I64(63)), I64(64))) as line:
            prefetch_line(builder, address, builder.mul(line.index, I64(64)))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), code
