"""Products of rows with one tile of packed codes, written in LLVM's vectors of the 16 outputs of a tile.

Codes are unpacked in registers, four inputs of 16 outputs at a time. Rounded activations are multiplied by the CPU's
products of bytes (VNNI, or AVX2's pairs), others as float32. A row's sums are in an order that the sizes alone fix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..native.vector_ir import BYTE, F32, I16, I32, I64, pointer
from .weight import CODINGS, QUAD, STEP, TILE

__all__ = ["BYTES_PER_GROUP", "ROWS", "multiply_scale", "put_scale", "tile_product"]

_features = llvm.get_host_cpu_features()
HAS_512, HAS_VNNI = bool(_features.get("avx512bw")), bool(_features.get("avx512vnni") and _features.get("avx512vl"))
ROWS = (8, 4, 2, 1) if HAS_512 else (4, 2, 1)
"""How many rows one call of `tile_product` may have."""
BYTES_PER_GROUP = 12
"""What a prepared row has after its K inputs, for each group: an i32 to begin sums with, its scale, its sum."""

FLOATS, INTS = ir.VectorType(F32, TILE), ir.VectorType(I32, TILE)
BYTES = ir.VectorType(BYTE, TILE * QUAD)


def _same(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _splat(builder: Any, scalar: Any, count: int = TILE) -> Any:
    kind = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    lanes = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), lanes)


def _load(builder: Any, kind: ir.Type, address: Any, *offsets: Any) -> Any:
    return builder.load(pointer(builder, address, kind, *offsets), align=1)


def _call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, f"llvm.fma.v{TILE}f32", FLOATS, a, b, c)


def _part(builder: Any, vector: Any, first: int, count: int) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _in_parts(builder: Any, num_bytes: int, function: Callable[..., Any], *vectors: Any) -> Any:
    """What `function` makes of vectors, so many bytes at a time."""
    parts = TILE * QUAD // num_bytes
    if parts == 1:
        return function(*vectors)
    made = [
        function(*(_part(builder, v, n * v.type.count // parts, v.type.count // parts) for v in vectors))
        for n in range(parts)
    ]
    while len(made) > 1:
        made = [
            builder.shuffle_vector(
                a, b, ir.Constant(ir.VectorType(I32, 2 * a.type.count), list(range(2 * a.type.count)))
            )
            for a, b in zip(made[::2], made[1::2], strict=True)
        ]
    return made[0]


def _add_products(builder: Any, sums: Any, codes: Any, x: Any, signed: bool) -> Any:
    """i32 sums of each lane plus its four codes times four bytes of x; codes are u8, or `signed` without VNNI."""
    width = 64 if HAS_512 else 32
    if HAS_VNNI:
        name = "llvm.x86.avx512.vpdpbusd.512"
        return _call(builder, name, INTS, sums, builder.bitcast(codes, INTS), x)

    def pairs(codes: Any, x: Any) -> Any:
        kind = codes.type
        shorts = ir.VectorType(I16, width // 2)
        if signed:  # u8 codes of 8 bits would not fit: the code's sign goes to x, exactly
            below = builder.icmp_signed("<", codes, _same(kind, 0))
            x = builder.select(below, builder.sub(_same(kind, 0), x), x)
            codes = builder.select(below, builder.sub(_same(kind, 0), codes), codes)
        if HAS_512:
            two = _call(builder, "llvm.x86.avx512.pmaddubs.w.512", shorts, codes, x)
            return _call(builder, "llvm.x86.avx512.pmaddw.d.512", INTS, two, _same(shorts, 1))
        two = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, codes, x)
        return _call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), two, _same(shorts, 1))

    return builder.add(sums, _in_parts(builder, width, pairs, codes, builder.bitcast(x, BYTES)))


class _Codes:
    """The codes of one step of a tile: STEP inputs of TILE outputs, quad by quad."""

    def __init__(self, builder: Any, coding: str, planes: Sequence[Any], step: Any) -> None:
        self._builder, self._coding = builder, CODINGS[coding]
        self.takes_sign = not HAS_VNNI and (self._coding.bits == 8 or bool(self._coding.table))
        """Whether products of bytes are made with values in -128..127, not with codes from 0 on."""
        self._vectors: list[list[Any]] = []
        for bits, base in zip(self._coding.planes, planes, strict=False):
            at = builder.mul(step, I64(bits * TILE * QUAD))
            self._vectors.append([_load(builder, INTS, base, at, TILE * QUAD * n) for n in range(bits)])

    def quad(self, q: int) -> Any:
        """u8 codes of the q-th four inputs."""
        builder, below, whole = self._builder, 0, None
        for bits, vectors in zip(self._coding.planes, self._vectors, strict=True):
            vector, shift = vectors[q * bits // 8], bits * q % 8 - below
            if shift > 0:
                vector = builder.lshr(vector, _same(INTS, shift))
            elif shift < 0:
                vector = builder.shl(vector, _same(INTS, -shift))
            if bits < 8:
                mask = ((1 << bits) - 1 << below) * 0x01010101
                vector = builder.and_(vector, _same(INTS, mask))
            whole = vector if whole is None else builder.or_(whole, vector)
            below += bits
        return builder.bitcast(whole, BYTES)

    def looked_up(self, codes: Any, shift: int) -> Any:
        """Values of codes of 4 bits out of the coding's table, `shift` added."""
        builder = self._builder
        entries = [ir.Constant(BYTE, (value + shift) & 255) for value in self._coding.table]
        width = 64 if HAS_512 else 32
        name = "llvm.x86.avx512.pshuf.b.512" if HAS_512 else "llvm.x86.avx2.pshuf.b"
        table = ir.Constant(ir.VectorType(BYTE, width), entries * (width // 16))
        return _in_parts(builder, width, lambda part: _call(builder, name, table.type, table, part), codes)


@intrinsic(prefer_literal=True)
def tile_product(
    typingctx: Any,
    x: Any,
    x_stride: Any,
    low: Any,
    high: Any,
    scales: Any,
    minimums: Any,
    steps: Any,
    middle: Any,
    out: Any,
    out_stride: Any,
    rows: Any,
    coding: Any,
    rounded: Any,
    has_minimum: Any,
) -> Any:
    """out[r, n] = sum over groups of scale[group, n] * sum of codes * x[r], plus minimum[group, n] * sum of x[r].

    x: address of `rows` prepared rows; low, high: of a tile's planes; scales, minimums: of its float32 [groups, TILE];
    steps: inputs / STEP; middle: what float products take off a code. rows, coding, rounded, has_minimum: constants.
    """
    constants = (rows, coding, rounded, has_minimum)
    if not all(isinstance(each, types.Literal) for each in constants):
        return None
    R, name, is_rounded, with_minimum = (each.literal_value for each in constants)

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        builder.call(_tile_function(builder, R, name, bool(is_rounded), bool(with_minimum)), args[:10])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 10, *constants), code


def _tile_function(caller: Any, R: int, coding: str, rounded: bool, with_minimum: bool) -> Any:
    kind = ir.FunctionType(ir.VoidType(), [I64] * 10)
    function = cgutils.get_or_insert_function(caller.module, kind, f"tile_{R}_{coding}_{rounded:d}_{with_minimum:d}")
    if function.blocks:
        return function
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    x, x_stride, low, high, scales, minimums, steps, middle, out, out_stride = function.args
    width, size, is_table = 1 if rounded else 4, CODINGS[coding].group, bool(CODINGS[coding].table)
    per_step = STEP // size
    rows = [builder.add(x, builder.mul(x_stride, I64(r))) for r in range(R)]
    inputs = builder.mul(steps, I64(STEP))
    groups = builder.mul(steps, I64(per_step))
    # After its inputs a row has, for all groups: what sums begin with, scales, sums.
    firsts = [builder.add(row, builder.mul(inputs, I64(width))) for row in rows]
    sums = [cgutils.alloca_once_value(builder, _same(FLOATS, 0)) for _ in range(R)]
    offset = _splat(builder, builder.trunc(middle, BYTE), TILE * QUAD)
    with cgutils.for_range(builder, steps) as step:
        codes = _Codes(builder, coding, (low, high), step.index)
        for part in range(per_step):
            group = builder.add(builder.mul(step.index, I64(per_step)), I64(part))
            at = builder.mul(group, I64(4))
            here = [builder.add(row, builder.mul(group, I64(size * width))) for row in rows]
            quads = range(part * size // QUAD, (part + 1) * size // QUAD)
            if rounded:
                parts = _rounded_sums(builder, codes, quads, here, [builder.add(f, at) for f in firsts], is_table)
                shifts = [builder.add(builder.add(f, at), builder.mul(groups, I64(4))) for f in firsts]
                parts = [
                    builder.fmul(part, _splat(builder, _load(builder, F32, shift)))
                    for part, shift in zip(parts, shifts, strict=True)
                ]
            else:
                parts = _float_sums(builder, codes, quads, here, offset, is_table)
            of_group = builder.mul(group, I64(4 * TILE))
            scale = _load(builder, FLOATS, scales, of_group)
            for r in range(R):
                total = _fma(builder, parts[r], scale, builder.load(sums[r]))
                if with_minimum:
                    place = builder.add(builder.add(firsts[r], at), builder.mul(groups, I64(8)))
                    least = _load(builder, FLOATS, minimums, of_group)
                    total = _fma(builder, _splat(builder, _load(builder, F32, place)), least, total)
                builder.store(total, sums[r])
    for r in range(R):
        place = pointer(builder, out, FLOATS, builder.mul(out_stride, I64(r)))
        builder.store(builder.load(sums[r]), place, align=4)
    builder.ret_void()
    return function


def _rounded_sums(
    builder: Any, codes: _Codes, quads: range, rows: Sequence[Any], firsts: Sequence[Any], is_table: bool
) -> list[Any]:
    """Float sums over a group of codes times bytes of x, of each row."""
    sums = [_splat(builder, _load(builder, I32, first)) for first in firsts]
    for n, q in enumerate(quads):
        quad = codes.quad(q)
        if is_table:
            quad = codes.looked_up(quad, 0 if codes.takes_sign else 128)
        elif codes.takes_sign:
            quad = builder.xor(quad, _same(BYTES, 128))
        for r, row in enumerate(rows):
            four = _splat(builder, _load(builder, I32, row, QUAD * n))
            sums[r] = _add_products(builder, sums[r], quad, four, codes.takes_sign)
    return [builder.sitofp(each, FLOATS) for each in sums]


def _float_sums(
    builder: Any, codes: _Codes, quads: range, rows: Sequence[Any], offset: Any, is_table: bool
) -> list[Any]:
    """Sums over a group of codes times float32 of x, of each row."""
    sums = [_same(FLOATS, 0) for _ in rows]
    for n, q in enumerate(quads):
        quad = codes.quad(q)
        quad = codes.looked_up(quad, 0) if is_table else builder.sub(quad, offset)
        whole = builder.bitcast(quad, INTS)
        for i in range(QUAD):
            lifted = builder.shl(whole, _same(INTS, 24 - 8 * i)) if i < QUAD - 1 else whole
            value = builder.sitofp(builder.ashr(lifted, _same(INTS, 24)), FLOATS)
            for r, row in enumerate(rows):
                scalar = _load(builder, F32, row, 4 * (QUAD * n + i))
                sums[r] = _fma(builder, value, _splat(builder, scalar), sums[r])
    return sums


@intrinsic(prefer_literal=True)
def put_scale(typingctx: Any, source: Any, target: Any, form: Any) -> Any:
    """float32 [TILE] at `target`: those of `form` (a constant: float32, bfloat16, float16) at `source`."""
    if not isinstance(form, types.Literal):
        return None
    number = form.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        source, target = args[:2]
        builder.store(_widened(builder, source, number), pointer(builder, target, FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, form), code


@intrinsic(prefer_literal=True)
def multiply_scale(typingctx: Any, factors: Any, target: Any, sign: Any) -> Any:
    """float32 [TILE] at `target`, times int8 at `factors`, times `sign` (a constant: 1 or -1)."""
    if not isinstance(sign, types.Literal):
        return None
    is_negative = sign.literal_value < 0

    def code(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
        factors, target = args[:2]
        whole = builder.sext(_load(builder, ir.VectorType(BYTE, TILE), factors), INTS)
        wide = builder.fmul(_load(builder, FLOATS, target), builder.sitofp(whole, FLOATS))
        wide = builder.fneg(wide) if is_negative else wide
        builder.store(wide, pointer(builder, target, FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, sign), code


def _widened(builder: Any, address: Any, form: int) -> Any:
    if form == 0:
        return _load(builder, FLOATS, address)
    if form == 2:
        return builder.fpext(_load(builder, ir.VectorType(ir.HalfType(), TILE), address), FLOATS)
    bits = builder.zext(_load(builder, ir.VectorType(I16, TILE), address), INTS)
    return builder.bitcast(builder.shl(bits, _same(INTS, 16)), FLOATS)
