"""Activations as products with packed codes want them: rounded to int8 in groups, or as they are, and their sums."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..native.vector_ir import BYTE, F32, I32, I64, pointer
from .native_tile import FLOATS, INTS, _call, _load, _same, _splat
from .weight import ROUNDED_INPUTS, TILE

__all__ = ["prepare_row"]

_MAGIC = 12582912.0
"""1.5 * 2**23: a sum with it has a small number, rounded to the nearest, even ones first, in its lowest bits."""
_MAGIC_BITS = 0x4B400000


@intrinsic(prefer_literal=True)
def prepare_row(typingctx: Any, x: Any, inputs: Any, target: Any, begin: Any, size: Any, rounded: Any) -> Any:
    """A row of float32 as `tile_product` wants it: its inputs, int8 or float32, then three numbers for each group.

    size: inputs of a group (a constant), each with an i32 to begin integer sums with, which is minus `begin` times
    the sum of its bytes, a scale, and the sum of its inputs as they are multiplied. rounded: a constant.
    """
    if not isinstance(size, types.Literal) or not isinstance(rounded, types.Literal):
        return None
    group_size, is_rounded = size.literal_value, bool(rounded.literal_value)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        x, inputs, target, begin = args[:4]
        groups = builder.udiv(inputs, I64(group_size))
        width = 1 if is_rounded else 4
        firsts = builder.add(target, builder.mul(inputs, I64(width)))
        lines = [builder.add(firsts, builder.mul(groups, I64(4 * n))) for n in range(3)]
        with cgutils.for_range(builder, builder.udiv(inputs, I64(ROUNDED_INPUTS))) as step:
            at = builder.mul(step.index, I64(4 * ROUNDED_INPUTS))
            values = [_load(builder, FLOATS, x, at, 4 * TILE * n) for n in range(ROUNDED_INPUTS // TILE)]
            bytes_at = builder.add(target, builder.mul(step.index, I64(width * ROUNDED_INPUTS)))
            scale = None
            if is_rounded:
                values, scale = _rounded(builder, values)
                for n, whole in enumerate(values):
                    place = pointer(builder, bytes_at, ir.VectorType(BYTE, TILE), TILE * n)
                    builder.store(builder.trunc(whole, ir.VectorType(BYTE, TILE)), place, align=1)
            else:
                for n, value in enumerate(values):
                    builder.store(value, pointer(builder, bytes_at, FLOATS, 4 * TILE * n), align=4)
            of_group = group_size // TILE
            for n in range(len(values) // of_group):
                _put_sums(builder, values[n * of_group : (n + 1) * of_group], scale, begin, lines, step.index,
                          n, len(values) // of_group)  # fmt: skip
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4, size, rounded), code


def _rounded(builder: Any, values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Integers in -127..127 and what they are multiplied by; a NaN makes that a NaN."""
    bits = [builder.and_(builder.bitcast(value, INTS), _same(INTS, 0x7FFFFFFF)) for value in values]
    largest = bits[0]
    for other in bits[1:]:
        largest = _call(builder, f"llvm.umax.v{TILE}i32", INTS, largest, other)
    most = builder.bitcast(_call(builder, f"llvm.vector.reduce.umax.v{TILE}i32", I32, largest), F32)
    scale = builder.fmul(most, ir.Constant(F32, 1 / 127))
    is_zero = builder.fcmp_unordered("==", scale, ir.Constant(F32, 0.0))
    divisor = builder.select(is_zero, ir.Constant(F32, 1.0), scale)
    factor = _splat(builder, builder.fdiv(ir.Constant(F32, 1.0), divisor))
    whole = []
    for value in values:
        moved = builder.fadd(builder.fmul(value, factor), _same(FLOATS, _MAGIC))
        whole.append(builder.sub(builder.bitcast(moved, INTS), _same(INTS, _MAGIC_BITS)))
    return whole, scale


def _put_sums(
    builder: Any,
    values: Sequence[Any],
    scale: Any,
    begin: Any,
    lines: Sequence[Any],
    step: Any,
    part: int,
    per_step: int,
) -> None:
    total = values[0]
    at = builder.mul(builder.add(builder.mul(step, I64(per_step)), I64(part)), I64(4))
    if scale is None:
        for other in values[1:]:
            total = builder.fadd(total, other)
        fold = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(F32, [F32, FLOATS]), f"llvm.vector.reduce.fadd.v{TILE}f32"
        )
        total = builder.call(fold, [ir.Constant(F32, 0.0), total], fastmath=("reassoc",))
    else:
        for other in values[1:]:
            total = builder.add(total, other)
        count = _call(builder, f"llvm.vector.reduce.add.v{TILE}i32", I32, total)
        first = builder.mul(builder.sub(I32(0), builder.trunc(begin, I32)), count)
        builder.store(first, pointer(builder, lines[0], I32, at), align=4)
        builder.store(scale, pointer(builder, lines[1], F32, at), align=4)
        total = builder.fmul(builder.sitofp(count, F32), scale)
    builder.store(total, pointer(builder, lines[2], F32, at), align=4)
