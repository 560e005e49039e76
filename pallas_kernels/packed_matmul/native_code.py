"""Products with packed weights, the code that Numba compiles.

A call is two jobs: first the rows are prepared, by the calling thread alone where they are few; then a unit is some
tiles with all rows, whose codes are read from memory once. What a row gets does not depend on the other rows.
Addresses are i64.
"""

from collections import namedtuple
from typing import Any

from numba import njit

from ..native.calls import (
    address_of,
    answer,
    argument,
    call,
    dimension,
    element_type,
    finish,
    free,
    hold,
    is_question,
    job_fields,
    leave,
    make_job,
    malloc,
    num_threads,
    result,
    spread,
    take,
    wait,
)
from ..native.memory import ZERO_I64, load_i64, store
from .native_rows import prepare_row
from .native_tile import BYTES_PER_GROUP, HAS_VNNI, ROWS, multiply_scale, put_scale, tile_product
from .weight import ACTIVATIONS, CODINGS, STEP, TILE

__all__ = ["KINDS", "make_handler", "make_participate"]

Kind = namedtuple("Kind", "coding activations has_minimum")
KINDS = {
    f"{coding}_{'minimum_' if has_minimum else ''}{activations}": Kind(coding, activations, has_minimum)
    for coding in CODINGS
    for activations in ACTIVATIONS
    for has_minimum in (False, True)
}
CHUNK_BYTES = 256 * 1024
"""The most of the rows that all tiles of a unit meet at once: a core's cache keeps it."""
UNITS_PER_THREAD = 8
LEAST_UNIT = 100_000
"""Multiplications of a unit at least: some 4 microseconds."""
PREPARED = 8
"""Rows that are prepared in a unit."""
_F32, _BF16 = 11, 16  # of xla::PrimitiveType; float16 is 10
X, CODES, HIGH, SCALE, SCALE_CODES, MINIMUM, MINIMUM_CODES = range(7)

JOB = job_fields(
    "x stride codes high scale scale_codes minimum minimum_codes out rows inputs outputs unit scale_type "
    "scale_groups scale_factors minimum_groups minimum_factors low_bytes high_bytes raw"
)
"""x: prepared rows, `stride` bytes apart; raw: the rows that a job prepares, 0 where it multiplies; unit: tiles of a
unit of work; low_bytes, high_bytes: of a tile's planes; groups and factors: how many scales an output has, and how many
integers beside them, 0 for none.
"""


def make_participate(kind: Kind) -> Any:
    """The function that takes units of a job until there is none, for weights of one of KINDS."""
    coding, rounded, has_minimum = kind.coding, int(kind.activations == "int8"), int(kind.has_minimum)
    size, most, begin = CODINGS[coding].group, ROWS[0], first_sum(kind)
    per_step, middle = STEP // size, CODINGS[coding].middle(kind.has_minimum)
    # Four calls of one function: Numba wants their constants apart.
    eight = ROWS[0]

    @njit(error_model="numpy")
    def put(place, factors, target, kind, sign):
        if kind == _F32:
            put_scale(place, target, 0)
        elif kind == _BF16:
            put_scale(place, target, 1)
        else:
            put_scale(place, target, 2)
        if sign > 0:
            multiply_scale(factors, target, 1)
        elif sign < 0:
            multiply_scale(factors, target, -1)

    @njit(error_model="numpy")
    def spread_scales(source, factors, kind, groups, count, total, is_zero, target):
        """float32 [total, TILE] at `target`, of so many groups at `source` and so many integers at `factors`."""
        repeats = total // max(groups, count)
        inner = 1 if count == 0 else count // groups
        sign = 0 if count == 0 else -1 if is_zero else 1
        for group in range(groups):
            place = source + group * TILE * (4 if kind == _F32 else 2)
            for _ in range(inner):
                for _ in range(repeats):
                    put(place, factors, target, kind, sign)
                    target += TILE * 4
                factors += TILE

    @njit(error_model="numpy")
    def rows_of(x, stride, low, high, scales, minimums, steps, out, out_stride, rows):
        """One tile with some rows."""
        r = 0
        while r < rows:
            a, c = x + r * stride, out + r * out_stride
            if most == 8 and rows - r >= 8:
                tile_product(a, stride, low, high, scales, minimums, steps, middle, c, out_stride, eight, coding,
                             rounded, has_minimum)  # fmt: skip
                r += 8
            elif rows - r >= 4:
                tile_product(a, stride, low, high, scales, minimums, steps, middle, c, out_stride, 4, coding,
                             rounded, has_minimum)  # fmt: skip
                r += 4
            elif rows - r >= 2:
                tile_product(a, stride, low, high, scales, minimums, steps, middle, c, out_stride, 2, coding,
                             rounded, has_minimum)  # fmt: skip
                r += 2
            else:
                tile_product(a, stride, low, high, scales, minimums, steps, middle, c, out_stride, 1, coding,
                             rounded, has_minimum)  # fmt: skip
                r += 1

    @njit(error_model="numpy")
    def tile_of(job, tile, first, rows, scratch):
        """One tile with `rows` rows from `first` on; scratch has room for the tile's scales and minimums."""
        inputs, outputs = load_i64(job + JOB.inputs), load_i64(job + JOB.outputs)
        stride, steps = load_i64(job + JOB.stride), inputs // STEP
        total, kind = steps * per_step, load_i64(job + JOB.scale_type)
        width = 4 if kind == _F32 else 2
        groups, count = load_i64(job + JOB.scale_groups), load_i64(job + JOB.scale_factors)
        scale = load_i64(job + JOB.scale) + tile * groups * TILE * width
        factors = load_i64(job + JOB.scale_codes) + tile * count * TILE
        spread_scales(scale, factors, kind, groups, count, total, 0, scratch)
        minimums = scratch + total * TILE * 4
        if has_minimum:
            own, count = load_i64(job + JOB.minimum_groups), load_i64(job + JOB.minimum_factors)
            if own > 0:
                groups, scale = own, load_i64(job + JOB.minimum) + tile * own * TILE * width
            factors = load_i64(job + JOB.minimum_codes) + tile * count * TILE
            spread_scales(scale, factors, kind, groups, count, total, own == 0, minimums)
        low = load_i64(job + JOB.codes) + tile * load_i64(job + JOB.low_bytes)
        high = load_i64(job + JOB.high) + tile * load_i64(job + JOB.high_bytes)
        out = load_i64(job + JOB.out) + (first * outputs + tile * TILE) * 4
        rows_of(load_i64(job + JOB.x) + first * stride, stride, low, high, scratch, minimums, steps, out,
                outputs * 4, rows)  # fmt: skip

    @njit(error_model="numpy")
    def prepare(job):
        rows, inputs, stride = load_i64(job + JOB.rows), load_i64(job + JOB.inputs), load_i64(job + JOB.stride)
        raw, target = load_i64(job + JOB.raw), load_i64(job + JOB.x)
        unit = take(job)
        while unit >= 0:
            for r in range(unit * PREPARED, min(rows, (unit + 1) * PREPARED)):
                prepare_row(raw + r * inputs * 4, inputs, target + r * stride, begin, size, rounded)
            finish(job)
            unit = take(job)

    @njit(error_model="numpy")
    def participate(job):
        if load_i64(job + JOB.raw) != 0:
            prepare(job)
            leave(job)
            return ZERO_I64
        rows, inputs, outputs = load_i64(job + JOB.rows), load_i64(job + JOB.inputs), load_i64(job + JOB.outputs)
        size = load_i64(job + JOB.unit)
        chunk = max(CHUNK_BYTES // load_i64(job + JOB.stride), most)
        unit = take(job)
        if unit >= 0:
            scratch = malloc(2 * inputs // STEP * per_step * TILE * 4)
            while unit >= 0:
                for first in range(0, rows, chunk):
                    for tile in range(unit * size, min(outputs // TILE, (unit + 1) * size)):
                        tile_of(job, tile, first, min(chunk, rows - first), scratch)
                finish(job)
                unit = take(job)
            free(scratch)
        leave(job)
        return ZERO_I64

    return participate


def first_sum(kind: Kind) -> int:
    """What is taken off each code in products of bytes, which sums of integers begin with minus the sum of x times."""
    coding = CODINGS[kind.coding]
    if coding.table or coding.bits == 8:
        return 128 if HAS_VNNI else 0  # other products of bytes take signed codes
    return coding.middle(kind.has_minimum)


def make_handler(participate_name: str, version: tuple[int, int], kind: Kind) -> Any:
    """XLA's handler: makes a job of a call, and takes part in it beside the threads that it asks for help."""
    major, minor = version
    width, size = 1 if kind.activations == "int8" else 4, CODINGS[kind.coding].group

    @njit(error_model="numpy")
    def run(frame, job, helpers):
        hold(job)
        spread(frame, job, helpers, address_of(participate_name))
        call(address_of(participate_name), job)
        wait(job)
        leave(job)

    @njit(error_model="numpy")
    def prepared(frame, rows, inputs, stride, threads):
        units = (rows + PREPARED - 1) // PREPARED
        job, target = make_job(units, JOB.num_bytes), malloc(rows * stride)
        store(job + JOB.raw, argument(frame, X))
        store(job + JOB.x, target)
        store(job + JOB.stride, stride)
        store(job + JOB.rows, rows)
        store(job + JOB.inputs, inputs)
        run(frame, job, min(threads, units) - 1)
        return target

    @njit(error_model="numpy")
    def describe(frame, job):
        store(job + JOB.codes, argument(frame, CODES))
        store(job + JOB.high, argument(frame, HIGH))
        store(job + JOB.scale, argument(frame, SCALE))
        store(job + JOB.scale_codes, argument(frame, SCALE_CODES))
        store(job + JOB.minimum, argument(frame, MINIMUM))
        store(job + JOB.minimum_codes, argument(frame, MINIMUM_CODES))
        store(job + JOB.scale_type, element_type(frame, SCALE))
        store(job + JOB.scale_groups, dimension(frame, SCALE, 1))
        store(job + JOB.scale_factors, dimension(frame, SCALE_CODES, 1))
        store(job + JOB.minimum_groups, dimension(frame, MINIMUM, 1))
        store(job + JOB.minimum_factors, dimension(frame, MINIMUM_CODES, 1))
        store(job + JOB.low_bytes, dimension(frame, CODES, 1) * TILE * 4)
        store(job + JOB.high_bytes, dimension(frame, HIGH, 1) * TILE * 4)

    @njit(error_model="numpy")
    def handler(frame):
        if is_question(frame):
            answer(frame, major, minor)
            return ZERO_I64
        rows, inputs, outputs = dimension(frame, X, 0), dimension(frame, X, 1), dimension(frame, CODES, 0) * TILE
        threads = num_threads(frame)
        unit = max(outputs // (threads * UNITS_PER_THREAD), LEAST_UNIT // (rows * inputs) + 1)
        unit = (unit + TILE - 1) // TILE
        units = (outputs // TILE + unit - 1) // unit
        job = make_job(units, JOB.num_bytes)
        stride = inputs * width + inputs // size * BYTES_PER_GROUP
        x = prepared(frame, rows, inputs, stride, threads)
        store(job + JOB.raw, ZERO_I64)
        describe(frame, job)
        store(job + JOB.x, x)
        store(job + JOB.stride, stride)
        store(job + JOB.out, result(frame))
        store(job + JOB.rows, rows)
        store(job + JOB.inputs, inputs)
        store(job + JOB.outputs, outputs)
        store(job + JOB.unit, unit)
        run(frame, job, min(threads, units) - 1)
        free(x)
        return ZERO_I64

    return handler
