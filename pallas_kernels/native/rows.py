"""What happens to whole rows of numbers: widening, transposition, and the softmax of scores as they come."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector_ir import (
    F32,
    I32,
    I64,
    INTS,
    LANES,
    MASKED,
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
def widen(typingctx: Any, source: Any, target: Any, count: Any, form: Any) -> Any:
    """`count` * LANES numbers of `form` (a constant) at `source`, as float32 at `target`; prefetches what follows."""
    if not isinstance(form, types.Literal):
        return None
    source_form = literal(form)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        source, target, count = args[:3]
        with cgutils.for_range(builder, count) as step:
            at = builder.mul(step.index, I64((2 if source_form else 4) * LANES))
            values = read_wide(builder, source_form, source, at)
            prefetch_line(builder, source, at, builder.mul(count, I64((2 if source_form else 4) * LANES)))
            write(builder, values, target, builder.mul(step.index, I64(4 * LANES)))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, form), code


@intrinsic(prefer_literal=True)
def transpose(typingctx: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, form: Any) -> Any:
    """LANES rows of LANES numbers of `form` (a constant) as the columns of float32 at `target`."""
    if not isinstance(form, types.Literal):
        return None
    source_form = literal(form)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        source, source_stride, target, target_stride = args[:4]
        v = [read_wide(builder, source_form, source, builder.mul(source_stride, I64(i))) for i in range(LANES)]
        h = 1
        while h < LANES:
            upper = [lane if not lane & h else LANES + (lane ^ h) for lane in range(LANES)]
            lower = [lane | h if not lane & h else LANES + lane for lane in range(LANES)]
            for i in range(LANES):
                if not i & h:
                    a, b = v[i], v[i + h]
                    v[i] = builder.shuffle_vector(a, b, ir.Constant(INTS, upper))
                    v[i + h] = builder.shuffle_vector(a, b, ir.Constant(INTS, lower))
            h *= 2
        for i in range(LANES):
            write(builder, v[i], target, builder.mul(target_stride, I64(i)))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4, form), code


def _exp(builder: Any, x: Any) -> Any:
    """e to the x <= 0 with an error of some 1e-7 of it: 2 to the n times a polynomial (Cephes' `expf`)."""
    x = call_vector(builder, "maxnum", x, number(-87.0))
    n = call_vector(builder, "floor", call_vector(builder, "fma", x, number(1.44269504088896341), number(0.5)))
    r = call_vector(builder, "fma", n, number(-0.693359375), x)
    r = call_vector(builder, "fma", n, number(2.12194440e-4), r)
    y = number(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = call_vector(builder, "fma", y, r, number(c))
    y = builder.fadd(call_vector(builder, "fma", y, builder.fmul(r, r), r), number(1.0))
    power = builder.add(builder.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
    return builder.fmul(y, builder.bitcast(builder.shl(power, ir.Constant(INTS, [23] * LANES)), VECTOR))


def _tanh(builder: Any, x: Any) -> Any:
    size = call_vector(builder, "fabs", x)
    e = _exp(builder, builder.fmul(size, number(-2.0)))
    y = builder.fdiv(builder.fsub(number(1.0), e), builder.fadd(number(1.0), e))
    return call_vector(builder, "copysign", y, x)


@intrinsic(prefer_literal=True)
def weigh(typingctx: Any, scores: Any, low: Any, high: Any, cap: Any, state: Any, keep: Any, vectors: Any) -> Any:
    """One row of an online softmax: scores at `scores` become weights, 0 where not low <= position < high.

    `vectors` * LANES scores, capped to cap * tanh(score / cap) where cap > 0. state: address of the largest score
    so far and the sum of weights, both renewed. What was summed with the old weights must be multiplied by the
    factor put at `keep`.
    """
    if not isinstance(vectors, types.Literal):
        return None
    N = literal(vectors)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        scores, low, high, cap, state, keep = args[:6]
        first, last = (splat(builder, builder.trunc(x, I32)) for x in (low, high))
        is_capped = builder.fcmp_ordered(">", cap, ir.Constant(F32, 0.0))
        with builder.if_then(is_capped):
            caps = splat(builder, cap)
            for n in range(N):
                x = builder.fdiv(read(builder, scores, 4 * LANES * n), caps)
                write(builder, builder.fmul(_tanh(builder, x), caps), scores, 4 * LANES * n)
        values, lives = [], []
        for n in range(N):
            lane = ir.Constant(INTS, [n * LANES + i for i in range(LANES)])
            live = builder.and_(builder.icmp_signed(">=", lane, first), builder.icmp_signed("<", lane, last))
            values.append(builder.select(live, read(builder, scores, 4 * LANES * n), number(MASKED)))
            lives.append(live)
        top = values[0]
        for value in values[1:]:
            top = call_vector(builder, "maxnum", top, value)
        old = read(builder, state, kind=F32)
        best = call_vector(
            builder, "vector.reduce.fmax", call_vector(builder, "maxnum", top, splat(builder, old)), result=F32
        )
        peak = splat(builder, best)
        total = number(0)
        for n in range(N):
            weight = builder.select(lives[n], _exp(builder, builder.fsub(values[n], peak)), number(0))
            write(builder, weight, scores, 4 * LANES * n)
            total = builder.fadd(total, weight)
        factor = _exp(builder, splat(builder, builder.fsub(old, best)))
        factor = builder.extract_element(factor, I32(0))
        added = call_vector(builder, "vector.reduce.fadd", ir.Constant(F32, 0.0), total, result=F32, flags=("reassoc",))
        write(builder, best, state)
        write(builder, builder.fadd(builder.fmul(read(builder, state, 4, kind=F32), factor), added), state, 4)
        write(builder, factor, keep)
        return context.get_dummy_value()

    kinds = (types.int64, types.int64, types.int64, types.float32, types.int64, types.int64)
    return types.none(*kinds, vectors), code
