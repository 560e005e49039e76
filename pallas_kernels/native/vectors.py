"""Vector instructions for Numba: what its own vectorizer does not find, written as LLVM's vector operations.

Owns the register-blocked product, the transposition and the softmax of a row. Each works on addresses (i64) of
float32, or of another form where `form` says so, and is inlined into the function that calls it. A result for one row
does not depend on the other rows of a call: the order of its sums is fixed by the sizes alone.
"""

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "DOTS_ROWS",
    "LANES",
    "MAX_ROWS",
    "VECTORS",
    "dots",
    "load",
    "prefetch",
    "product",
    "store",
    "transpose",
    "weigh",
    "widen",
]

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

_F, _I, _I16, _I64, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(64), ir.IntType(8)
_VECTOR, _INTS = ir.VectorType(_F, LANES), ir.VectorType(_I, LANES)


def _number(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_F, value)] * LANES)


def _pointer(builder: Any, address: Any, kind: ir.Type, *offsets: Any) -> Any:
    for offset in offsets:
        address = builder.add(address, offset if isinstance(offset, ir.Value) else _I64(offset))
    return builder.inttoptr(address, kind.as_pointer())


def _read(builder: Any, address: Any, *offsets: Any, kind: ir.Type = _VECTOR, align: int = 4) -> Any:
    return builder.load(_pointer(builder, address, kind, *offsets), align=align)


def _write(builder: Any, value: Any, address: Any, *offsets: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type, *offsets), align=4)


def _prefetch(builder: Any, address: Any, *offsets: Any) -> None:
    """Have memory brought near that will be read soon; any address will do."""
    pointer = _pointer(builder, address, _BYTE, *offsets)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I, _I, _I])
    builder.call(
        cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [pointer, _I(0), _I(3), _I(1)]
    )


def _read_wide(builder: Any, form: int, address: Any, *offsets: Any) -> Any:
    """LANES numbers of a form as float32; the bits of bfloat16 are the upper half of it."""
    if form == FLOAT32:
        return _read(builder, address, *offsets)
    if form == FLOAT16:
        halves = _read(builder, address, *offsets, kind=ir.VectorType(ir.HalfType(), LANES), align=2)
        return builder.fpext(halves, _VECTOR)
    bits = _read(builder, address, *offsets, kind=ir.VectorType(_I16, LANES), align=2)
    shifted = builder.shl(builder.zext(bits, _INTS), ir.Constant(_INTS, [16] * LANES))
    return builder.bitcast(shifted, _VECTOR)


def _splat(builder: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _call(builder: Any, name: str, *args: Any, result: ir.Type = _VECTOR, flags: Sequence[str] = ()) -> Any:
    """One of LLVM's functions of vectors."""
    kind = ir.FunctionType(result, [a.type for a in args])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, args, fastmath=flags)


def _literal(value: Any) -> int:
    return int(value.literal_value)


@intrinsic
def load(typingctx: Any, address: Any, like: Any) -> Any:
    """The number at an address, of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        kind = context.get_value_type(signature.args[1])
        return builder.load(_pointer(builder, args[0], kind), align=1)

    return like(types.int64, like), code


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Put a number at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, value), code


@intrinsic
def prefetch(typingctx: Any, address: Any, size: Any) -> Any:
    """Have so many bytes brought near that will be read soon."""

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        address, size = args
        with cgutils.for_range(builder, builder.udiv(builder.add(size, _I64(63)), _I64(64))) as line:
            _prefetch(builder, address, builder.mul(line.index, _I64(64)))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), code


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
    N, b_form, is_fresh = map(_literal, (vectors, form, fresh))

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        *given, rows = args[:10]
        after = builder.append_basic_block("after")
        choice = builder.switch(rows, after)
        for R in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"rows{R}")
            choice.add_case(_I64(R), block)
            builder.position_at_end(block)
            builder.call(_block_product(builder, R, N, b_form, bool(is_fresh)), given)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 10, vectors, form, fresh), code


def _block_product(caller: Any, R: int, N: int, form: int, fresh: bool) -> Any:
    """A function of the module for R rows and N vectors; its sums are R * N registers."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 9)
    function = cgutils.get_or_insert_function(caller.module, kind, f"product_{R}_{N}_{form}_{fresh:d}")
    if function.blocks:
        return function
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, a_stride, bases, groups, b_stride, offset, c, c_stride, keep = function.args
    sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(N)] for _ in range(R)]
    places = [builder.add(c, builder.mul(c_stride, _I64(r))) for r in range(R)]
    lefts = [builder.add(a, builder.mul(a_stride, _I64(r))) for r in range(R)]
    for r in range(R):
        factor = None if fresh else _splat(builder, _read(builder, keep, 4 * r, kind=_F))
        for n in range(N):
            old = _number(0) if factor is None else builder.fmul(_read(builder, places[r], 4 * LANES * n), factor)
            builder.store(old, sums[r][n])
    with cgutils.for_range(builder, groups) as group:
        base = builder.add(_read(builder, bases, builder.mul(group.index, _I64(8)), kind=_I64), offset)
        first = builder.mul(group.index, _I64(4 * LANES))
        with cgutils.for_range(builder, _I64(LANES)) as step:
            row = builder.add(base, builder.mul(step.index, b_stride))
            at = builder.add(first, builder.mul(step.index, _I64(4)))
            right = [_read_wide(builder, form, row, (2 if form else 4) * LANES * n) for n in range(N)]
            for r in range(R):
                left = _splat(builder, _read(builder, lefts[r], at, kind=_F))
                for n in range(N):
                    builder.store(_call(builder, "fma", left, right[n], builder.load(sums[r][n])), sums[r][n])
    for r in range(R):
        for n in range(N):
            _write(builder, builder.load(sums[r][n]), places[r], 4 * LANES * n)
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
    N, b_form, is_ahead = map(_literal, (columns, form, ahead))

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        *given, rows = args[:8]
        after = builder.append_basic_block("after")
        choice = builder.switch(rows, after)
        for R in range(1, DOTS_ROWS + 1):
            block = builder.append_basic_block(f"rows{R}")
            choice.add_case(_I64(R), block)
            builder.position_at_end(block)
            builder.call(_block_dots(builder, R, N, b_form, bool(is_ahead)), given)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 8, columns, form, ahead), code


def _block_dots(caller: Any, R: int, N: int, form: int, ahead: bool) -> Any:
    """A function of the module for R rows and N columns; its sums are R * N registers."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 7)
    function = cgutils.get_or_insert_function(caller.module, kind, f"dots_{R}_{N}_{form}_{ahead:d}")
    if function.blocks:
        return function
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a, a_stride, b, b_stride, steps, c, c_stride = function.args
    sums = [[cgutils.alloca_once_value(builder, _number(0)) for _ in range(N)] for _ in range(R)]
    lefts = [builder.add(a, builder.mul(a_stride, _I64(r))) for r in range(R)]
    rights = [builder.add(b, builder.mul(b_stride, _I64(n))) for n in range(N)]
    with cgutils.for_range(builder, steps) as step:
        at = builder.mul(step.index, _I64(4 * LANES))
        right_at = builder.mul(step.index, _I64((2 if form else 4) * LANES))
        left = [_read(builder, lefts[r], at) for r in range(R)]
        for n in range(N):  # one right at a time: with 16 registers there is none to spare
            right = _read_wide(builder, form, rights[n], right_at)
            if ahead:
                _prefetch(builder, rights[n], right_at, builder.mul(b_stride, _I64(N)))
            for r in range(R):
                builder.store(_call(builder, "fma", left[r], right, builder.load(sums[r][n])), sums[r][n])
    for r in range(R):
        row = builder.add(c, builder.mul(c_stride, _I64(r)))
        totals = [builder.load(each) for each in sums[r]]
        if N == 4:
            _write(builder, _four_sums(builder, totals), row)
            continue
        for n in range(N):
            total = _call(builder, "vector.reduce.fadd", ir.Constant(_F, 0.0), totals[n], result=_F, flags=("reassoc",))
            _write(builder, total, row, 4 * n)
    builder.ret_void()
    return function


def _four_sums(builder: Any, vectors: Sequence[Any]) -> Any:
    """The sums of the lanes of each of four vectors, four numbers: halves of segments are added to each other."""

    def halved(a: Any, b: Any, length: int) -> Any:
        first = [start + i for start in range(0, 2 * LANES, length) for i in range(length // 2)]
        low, high = (ir.Constant(_INTS, [at + shift for at in first[:LANES]]) for shift in (0, length // 2))
        return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))

    ab, cd = halved(vectors[0], vectors[1], LANES), halved(vectors[2], vectors[3], LANES)
    whole, length = halved(ab, cd, LANES // 2), LANES // 4
    while length > 1:
        kept = [min(lane + length // 2, LANES - 1) for lane in range(LANES)]
        whole = builder.fadd(whole, builder.shuffle_vector(whole, whole, ir.Constant(_INTS, kept)))
        length //= 2
    ends = ir.Constant(ir.VectorType(_I, 4), [n * LANES // 4 for n in range(4)])
    return builder.shuffle_vector(whole, whole, ends)


@intrinsic(prefer_literal=True)
def widen(typingctx: Any, source: Any, target: Any, count: Any, form: Any) -> Any:
    """`count` * LANES numbers of `form` (a constant) at `source`, as float32 at `target`; prefetches what follows."""
    if not isinstance(form, types.Literal):
        return None
    source_form = _literal(form)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        source, target, count = args[:3]
        with cgutils.for_range(builder, count) as step:
            at = builder.mul(step.index, _I64((2 if source_form else 4) * LANES))
            values = _read_wide(builder, source_form, source, at)
            _prefetch(builder, source, at, builder.mul(count, _I64((2 if source_form else 4) * LANES)))
            _write(builder, values, target, builder.mul(step.index, _I64(4 * LANES)))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, form), code


@intrinsic(prefer_literal=True)
def transpose(typingctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, form: Any) -> Any:
    """LANES rows of LANES numbers of `form` (a constant) as the columns of float32 at `target`."""
    if not isinstance(form, types.Literal):
        return None
    source_form = _literal(form)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        source, source_stride, target, target_stride = args[:4]
        v = [_read_wide(builder, source_form, source, builder.mul(source_stride, _I64(i))) for i in range(LANES)]
        h = 1
        while h < LANES:
            upper = [lane if not lane & h else LANES + (lane ^ h) for lane in range(LANES)]
            lower = [lane | h if not lane & h else LANES + lane for lane in range(LANES)]
            for i in range(LANES):
                if not i & h:
                    a, b = v[i], v[i + h]
                    v[i] = builder.shuffle_vector(a, b, ir.Constant(_INTS, upper))
                    v[i + h] = builder.shuffle_vector(a, b, ir.Constant(_INTS, lower))
            h *= 2
        for i in range(LANES):
            _write(builder, v[i], target, builder.mul(target_stride, _I64(i)))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4, form), code


def _exp(builder: Any, x: Any) -> Any:
    """e to the x <= 0 with an error of some 1e-7 of it: 2 to the n times a polynomial (Cephes' `expf`)."""
    x = _call(builder, "maxnum", x, _number(-87.0))
    n = _call(builder, "floor", _call(builder, "fma", x, _number(1.44269504088896341), _number(0.5)))
    r = _call(builder, "fma", n, _number(-0.693359375), x)
    r = _call(builder, "fma", n, _number(2.12194440e-4), r)
    y = _number(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = _call(builder, "fma", y, r, _number(c))
    y = builder.fadd(_call(builder, "fma", y, builder.fmul(r, r), r), _number(1.0))
    power = builder.add(builder.fptosi(n, _INTS), ir.Constant(_INTS, [127] * LANES))
    return builder.fmul(y, builder.bitcast(builder.shl(power, ir.Constant(_INTS, [23] * LANES)), _VECTOR))


def _tanh(builder: Any, x: Any) -> Any:
    size = _call(builder, "fabs", x)
    e = _exp(builder, builder.fmul(size, _number(-2.0)))
    y = builder.fdiv(builder.fsub(_number(1.0), e), builder.fadd(_number(1.0), e))
    return _call(builder, "copysign", y, x)


@intrinsic(prefer_literal=True)
def weigh(typingctx: Any, scores: Any, low: Any, high: Any, cap: Any, state: Any, keep: Any, vectors: Any) -> Any:
    """One row of an online softmax: scores at `scores` become weights, 0 where not low <= position < high.

    `vectors` * LANES scores, capped to cap * tanh(score / cap) where cap > 0. state: address of the largest score
    so far and the sum of weights, both renewed. What was summed with the old weights must be multiplied by the
    factor put at `keep`.
    """
    if not isinstance(vectors, types.Literal):
        return None
    N = _literal(vectors)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        scores, low, high, cap, state, keep = args[:6]
        first, last = (_splat(builder, builder.trunc(x, _I)) for x in (low, high))
        is_capped = builder.fcmp_ordered(">", cap, ir.Constant(_F, 0.0))
        with builder.if_then(is_capped):
            caps = _splat(builder, cap)
            for n in range(N):
                x = builder.fdiv(_read(builder, scores, 4 * LANES * n), caps)
                _write(builder, builder.fmul(_tanh(builder, x), caps), scores, 4 * LANES * n)
        values, lives = [], []
        for n in range(N):
            lane = ir.Constant(_INTS, [n * LANES + i for i in range(LANES)])
            live = builder.and_(builder.icmp_signed(">=", lane, first), builder.icmp_signed("<", lane, last))
            values.append(builder.select(live, _read(builder, scores, 4 * LANES * n), _number(MASKED)))
            lives.append(live)
        top = values[0]
        for value in values[1:]:
            top = _call(builder, "maxnum", top, value)
        old = _read(builder, state, kind=_F)
        best = _call(builder, "vector.reduce.fmax", _call(builder, "maxnum", top, _splat(builder, old)), result=_F)
        peak = _splat(builder, best)
        total = _number(0)
        for n in range(N):
            weight = builder.select(lives[n], _exp(builder, builder.fsub(values[n], peak)), _number(0))
            _write(builder, weight, scores, 4 * LANES * n)
            total = builder.fadd(total, weight)
        factor = _exp(builder, _splat(builder, builder.fsub(old, best)))
        factor = builder.extract_element(factor, _I(0))
        added = _call(builder, "vector.reduce.fadd", ir.Constant(_F, 0.0), total, result=_F, flags=("reassoc",))
        _write(builder, best, state)
        _write(builder, builder.fadd(builder.fmul(_read(builder, state, 4, kind=_F), factor), added), state, 4)
        _write(builder, factor, keep)
        return context.get_dummy_value()

    kinds = (types.int64, types.int64, types.int64, types.float32, types.int64, types.int64)
    return types.none(*kinds, vectors), code
