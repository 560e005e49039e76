"""LLVM's vector operations as small functions: what Numba's own vectorizer does not find is written with them.

Owns the widths and forms of vectors. `builder` is an `llvmlite.ir.IRBuilder` in the function that is being written,
addresses are i64 values of it, offsets are in bytes.
"""

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""Numbers in a vector; LLVM splits what the CPU's registers cannot hold."""
VECTORS = (4, 1) if LANES == 16 else (2, 1)
"""How many vectors wide a block of `product` may be, the widest first."""
MAX_ROWS = 6
"""How many rows a block of `product` has at most: with VECTORS[0] each, 24 of 32 registers hold sums, or 12 of 16."""
DOTS_ROWS = 6 if LANES == 16 else 3
"""How many rows a block of `dots` has at most: with 4 columns, again 24 or 12 sums."""
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
"""Forms of numbers in memory."""
MASKED = -1e30
"""The score of a position that is not seen: finite, so that masked - masked is 0 and not NaN."""

F32, I32, I16, I64, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(64), ir.IntType(8)
VECTOR, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def number(value: float) -> ir.Constant:
    """A vector of one number."""
    return ir.Constant(VECTOR, [ir.Constant(F32, value)] * LANES)


def pointer(builder: Any, address: Any, kind: ir.Type, *offsets: Any) -> Any:
    """A pointer to a `kind` at an address plus offsets."""
    for offset in offsets:
        address = builder.add(address, offset if isinstance(offset, ir.Value) else I64(offset))
    return builder.inttoptr(address, kind.as_pointer())


def read(builder: Any, address: Any, *offsets: Any, kind: ir.Type = VECTOR, align: int = 4) -> Any:
    """What lies at an address: LANES numbers of float32, unless `kind` says otherwise."""
    return builder.load(pointer(builder, address, kind, *offsets), align=align)


def write(builder: Any, value: Any, address: Any, *offsets: Any) -> None:
    """Store a value at an address."""
    builder.store(value, pointer(builder, address, value.type, *offsets), align=4)


def prefetch_line(builder: Any, address: Any, *offsets: Any) -> None:
    """Fetch the cache line at an address, which will be read soon; any address will do."""
    line = pointer(builder, address, BYTE, *offsets)
    kind = ir.FunctionType(ir.VoidType(), [line.type, I32, I32, I32])
    builder.call(
        cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [line, I32(0), I32(3), I32(1)]
    )


def read_wide(builder: Any, form: int, address: Any, *offsets: Any) -> Any:
    """LANES numbers of a form as float32; the bits of bfloat16 are the upper half of it."""
    if form == FLOAT32:
        return read(builder, address, *offsets)
    if form == FLOAT16:
        halves = read(builder, address, *offsets, kind=ir.VectorType(ir.HalfType(), LANES), align=2)
        return builder.fpext(halves, VECTOR)
    bits = read(builder, address, *offsets, kind=ir.VectorType(I16, LANES), align=2)
    shifted = builder.shl(builder.zext(bits, INTS), ir.Constant(INTS, [16] * LANES))
    return builder.bitcast(shifted, VECTOR)


def splat(builder: Any, scalar: Any) -> Any:
    """A vector with the scalar in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, [0] * LANES))


def call_vector(builder: Any, name: str, *args: Any, result: ir.Type = VECTOR, flags: Sequence[str] = ()) -> Any:
    """The result of one of LLVM's functions on vectors."""
    kind = ir.FunctionType(result, [a.type for a in args])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, args, fastmath=flags)


def literal(value: Any) -> int:
    """The integer of a constant argument of an intrinsic."""
    return int(value.literal_value)
