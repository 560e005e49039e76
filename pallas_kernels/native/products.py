"""Register-blocked products of float32 rows with another matrix, which may be in another form.

A result for one row does not depend on the other rows of a call: the order of its sums is fixed by the sizes alone.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector_ir import (
    DOTS_ROWS,
    F32,
    I32,
    I64,
    INTS,
    LANES,
    MAX_ROWS,
    VECTOR,
    call_vector,
    literal,
    number,
    prefetch_line,
    read,
    read_wide,
    splat,
    write,
)


@intrinsic(prefer_literal=True)
def product(
    typingctx: Any,
    a: Any,
    a_stride: Any,
    bases: Any,
    groups: Any,
    b_stride: Any,
    offset: Any,
    c: Any,
    c_stride: Any,
    keep: Any,
    rows: Any,
    vectors: Any,
    form: Any,
    fresh: Any,
) -> Any:
    """C[r] = C[r] * keep[r] + sum over g, j of A[r, g * LANES + j] * B[g][j], a block that stays in registers.

    B[g] begins at the address bases[g] + offset and has LANES rows of `form`, b_stride bytes apart.
    a, c: addresses of `rows` (1 .. MAX_ROWS) rows, a_stride and c_stride bytes apart; C is `vectors` * LANES wide.
    With `fresh` C is not read. vectors, form, fresh: constants.
    """
    if not all(isinstance(x, types.Literal) for x in (vectors, form, fresh)):
        return None
    N, b_form, is_fresh = map(literal, (vectors, form, fresh))

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        *operands, rows = args[:10]
        after = builder.append_basic_block("after")
        choice = builder.switch(rows, after)
        for R in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"rows{R}")
            choice.add_case(I64(R), block)
            builder.position_at_end(block)
            builder.call(_block_product(builder, R, N, b_form, bool(is_fresh)), operands)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 10, vectors, form, fresh), code


def _block_product(caller: Any, R: int, N: int, form: int, fresh: bool) -> Any:
    """A function of the module for R rows and N vectors; its sums are R * N registers."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 9)
    function = cgutils.get_or_insert_function(caller.module, kind, f"product_{R}_{N}_{form}_{fresh:d}")
    if function.blocks:
        return function
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, a_stride, bases, groups, b_stride, offset, c, c_stride, keep = function.args
    sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(N)] for _ in range(R)]
    places = [builder.add(c, builder.mul(c_stride, I64(r))) for r in range(R)]
    lefts = [builder.add(a, builder.mul(a_stride, I64(r))) for r in range(R)]
    for r in range(R):
        factor = None if fresh else splat(builder, read(builder, keep, 4 * r, kind=F32))
        for n in range(N):
            old = number(0) if factor is None else builder.fmul(read(builder, places[r], 4 * LANES * n), factor)
            builder.store(old, sums[r][n])
    with cgutils.for_range(builder, groups) as group:
        base = builder.add(read(builder, bases, builder.mul(group.index, I64(8)), kind=I64), offset)
        first = builder.mul(group.index, I64(4 * LANES))
        with cgutils.for_range(builder, I64(LANES)) as step:
            row = builder.add(base, builder.mul(step.index, b_stride))
            at = builder.add(first, builder.mul(step.index, I64(4)))
            right = [read_wide(builder, form, row, (2 if form else 4) * LANES * n) for n in range(N)]
            for r in range(R):
                left = splat(builder, read(builder, lefts[r], at, kind=F32))
                for n in range(N):
                    builder.store(call_vector(builder, "fma", left, right[n], builder.load(sums[r][n])), sums[r][n])
    for r in range(R):
        for n in range(N):
            write(builder, builder.load(sums[r][n]), places[r], 4 * LANES * n)
    builder.ret_void()
    return function


@intrinsic(prefer_literal=True)
def dots(
    typingctx: Any,
    a: Any,
    a_stride: Any,
    b: Any,
    b_stride: Any,
    steps: Any,
    c: Any,
    c_stride: Any,
    rows: Any,
    columns: Any,
    form: Any,
    ahead: Any,
) -> Any:
    """C[r, n] = sum over steps * LANES numbers of A[r] times B[n], each with a sum of its own per lane until the end.

    a, b, c: addresses; A has `rows` (1 .. DOTS_ROWS) rows of float32, a_stride bytes apart, B has `columns` rows of
    `form`, b_stride bytes apart, C has rows c_stride bytes apart. With `ahead`, what follows B is prefetched.
    columns, form, ahead: constants.
    """
    if not all(isinstance(x, types.Literal) for x in (columns, form, ahead)):
        return None
    N, b_form, is_ahead = map(literal, (columns, form, ahead))

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        *operands, rows = args[:8]
        after = builder.append_basic_block("after")
        choice = builder.switch(rows, after)
        for R in range(1, DOTS_ROWS + 1):
            block = builder.append_basic_block(f"rows{R}")
            choice.add_case(I64(R), block)
            builder.position_at_end(block)
            builder.call(_block_dots(builder, R, N, b_form, bool(is_ahead)), operands)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 8, columns, form, ahead), code


def _block_dots(caller: Any, R: int, N: int, form: int, ahead: bool) -> Any:
    """A function of the module for R rows and N columns; its sums are R * N registers."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 7)
    function = cgutils.get_or_insert_function(caller.module, kind, f"dots_{R}_{N}_{form}_{ahead:d}")
    if function.blocks:
        return function
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, a_stride, b, b_stride, steps, c, c_stride = function.args
    sums = [[cgutils.alloca_once_value(builder, number(0)) for _ in range(N)] for _ in range(R)]
    lefts = [builder.add(a, builder.mul(a_stride, I64(r))) for r in range(R)]
    rights = [builder.add(b, builder.mul(b_stride, I64(n))) for n in range(N)]
    with cgutils.for_range(builder, steps) as step:
        at = builder.mul(step.index, I64(4 * LANES))
        right_at = builder.mul(step.index, I64((2 if form else 4) * LANES))
        left = [read(builder, lefts[r], at) for r in range(R)]
        for n in range(N):  # one right at a time: with 16 registers there is none to spare
            right = read_wide(builder, form, rights[n], right_at)
            if ahead:
                prefetch_line(builder, rights[n], right_at, builder.mul(b_stride, I64(N)))
            for r in range(R):
                builder.store(call_vector(builder, "fma", left[r], right, builder.load(sums[r][n])), sums[r][n])
    for r in range(R):
        row = builder.add(c, builder.mul(c_stride, I64(r)))
        totals = [builder.load(each) for each in sums[r]]
        if N == 4:
            write(builder, _four_sums(builder, totals), row)
            continue
        for n in range(N):
            total = call_vector(
                builder, "vector.reduce.fadd", ir.Constant(F32, 0.0), totals[n], result=F32, flags=("reassoc",)
            )
            write(builder, total, row, 4 * n)
    builder.ret_void()
    return function


def _four_sums(builder: Any, vectors: Sequence[Any]) -> Any:
    """The sums of the lanes of each of four vectors, four numbers: halves of segments are added to each other."""

    def halved(a: Any, b: Any, length: int) -> Any:
        first = [start + i for start in range(0, 2 * LANES, length) for i in range(length // 2)]
        low, high = (ir.Constant(INTS, [at + shift for at in first[:LANES]]) for shift in (0, length // 2))
        return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))

    ab, cd = halved(vectors[0], vectors[1], LANES), halved(vectors[2], vectors[3], LANES)
    whole, length = halved(ab, cd, LANES // 2), LANES // 4
    while length > 1:
        kept = [min(lane + length // 2, LANES - 1) for lane in range(LANES)]
        whole = builder.fadd(whole, builder.shuffle_vector(whole, whole, ir.Constant(INTS, kept)))
        length //= 2
    ends = ir.Constant(ir.VectorType(I32, 4), [n * LANES // 4 for n in range(4)])
    return builder.shuffle_vector(whole, whole, ends)
