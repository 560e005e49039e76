"""Products with a weight that lies outputs first, the code that Numba compiles.

A unit of work is a block of outputs with all rows: its weights are read from memory once, and each row of x comes
from a cache. What a row gets does not depend on the other rows. Addresses are i64.
"""

from typing import Any

from numba import njit

from ..native.calls import (
    address_of,
    answer,
    argument,
    call,
    dimension,
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
from ..native.products import dots
from ..native.rows import widen
from ..native.vector_ir import BFLOAT16, DOTS_ROWS, FLOAT32, LANES

__all__ = ["KINDS", "make_handler", "make_participate"]

KINDS = {"float32": FLOAT32, "uint16": BFLOAT16}
"""Types of the weight: numbers, or the bits of bfloat16."""
COLUMNS = 4
"""Outputs of a block that stays in registers."""
WIDEN_ROWS = 2 * DOTS_ROWS
"""With more rows than these weights are widened once, and not for every block of rows."""
CHUNK_BYTES = 256 * 1024
"""The most of x that all outputs of a unit meet at once: a core's cache keeps it."""
UNITS_PER_THREAD = 8
LEAST_UNIT = 40_000
"""Multiplications of a unit at least: some 4 microseconds."""

JOB = job_fields("x weight out rows inputs outputs unit")
"""`unit`: outputs of a unit of work."""


def make_participate(form: int) -> Any:
    """The function that takes units of a job until there is none, for weights of one of KINDS."""
    width = 2 if form else 4

    @njit(error_model="numpy")
    def columns_of(x, weight, out, rows, inputs, outputs, scratch):
        """COLUMNS outputs of some rows, in blocks of nearly the same number of rows."""
        steps, r, blocks = inputs // LANES, 0, (rows + DOTS_ROWS - 1) // DOTS_ROWS
        is_wide = rows > WIDEN_ROWS and form != FLOAT32
        if is_wide:
            widen(weight, scratch, COLUMNS * steps, form)
        while blocks > 0:
            count = (rows - r + blocks - 1) // blocks
            a, c = x + r * inputs * 4, out + r * outputs * 4
            if is_wide:
                dots(a, inputs * 4, scratch, inputs * 4, steps, c, outputs * 4, count, COLUMNS, FLOAT32, 0)
            elif r == 0:
                dots(a, inputs * 4, weight, inputs * width, steps, c, outputs * 4, count, COLUMNS, form, 1)
            else:
                dots(a, inputs * 4, weight, inputs * width, steps, c, outputs * 4, count, COLUMNS, form, 0)
            r += count
            blocks -= 1

    @njit(error_model="numpy")
    def outputs_of(x, weight, out, rows, inputs, outputs, first, last, scratch):
        """Outputs first .. last - 1 of some rows."""
        n = first
        while n + COLUMNS <= last:
            columns_of(x, weight + n * inputs * width, out + n * 4, rows, inputs, outputs, scratch)
            n += COLUMNS
        while n < last:
            for r in range(rows):
                dots(x + r * inputs * 4, inputs * 4, weight + n * inputs * width, inputs * width,
                     inputs // LANES, out + (r * outputs + n) * 4, outputs * 4, 1, 1, form, 0)  # fmt: skip
            n += 1

    @njit(error_model="numpy")
    def participate(job):
        x, weight, out = load_i64(job + JOB.x), load_i64(job + JOB.weight), load_i64(job + JOB.out)
        rows, inputs, outputs = load_i64(job + JOB.rows), load_i64(job + JOB.inputs), load_i64(job + JOB.outputs)
        size = load_i64(job + JOB.unit)
        chunk = max(CHUNK_BYTES // (inputs * 4), COLUMNS * DOTS_ROWS)
        unit = take(job)
        if unit >= 0:
            scratch = malloc(COLUMNS * inputs * 4)
            while unit >= 0:
                for r in range(0, rows, chunk):
                    outputs_of(x + r * inputs * 4, weight, out + r * outputs * 4, min(chunk, rows - r), inputs,
                               outputs, unit * size, min(outputs, (unit + 1) * size), scratch)  # fmt: skip
                finish(job)
                unit = take(job)
            free(scratch)
        leave(job)
        return ZERO_I64

    return participate


def make_handler(participate_name: str, version: tuple[int, int], kind: Any) -> Any:
    """XLA's handler: makes a job of a call, and takes part in it beside the threads that it asks for help."""
    del kind  # a call is the same for all
    major, minor = version

    @njit(error_model="numpy")
    def handler(frame):
        if is_question(frame):
            answer(frame, major, minor)
            return ZERO_I64
        rows, inputs, outputs = dimension(frame, 0, 0), dimension(frame, 0, 1), dimension(frame, 1, 0)
        threads = num_threads(frame)
        size = max(outputs // (threads * UNITS_PER_THREAD), LEAST_UNIT // (rows * inputs) + 1)
        size = (size + COLUMNS - 1) // COLUMNS * COLUMNS
        units = (outputs + size - 1) // size
        job = make_job(units, JOB.num_bytes)
        store(job + JOB.x, argument(frame, 0))
        store(job + JOB.weight, argument(frame, 1))
        store(job + JOB.out, result(frame))
        store(job + JOB.rows, rows)
        store(job + JOB.inputs, inputs)
        store(job + JOB.outputs, outputs)
        store(job + JOB.unit, size)
        hold(job)
        spread(frame, job, min(threads, units) - 1, address_of(participate_name))
        call(address_of(participate_name), job)
        wait(job)
        leave(job)
        return ZERO_I64

    return handler
