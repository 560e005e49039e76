"""Products with a weight that lies outputs first, the code that Numba compiles.

A unit of work is a block of outputs with all rows: its weights are read from memory once, and each row of x comes
from a cache. What a row gets does not depend on the other rows. Addresses are i64.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import cfunc, njit, types

from ..native.calls import (
    JOB,
    address_of,
    answer,
    argument,
    call,
    dimension,
    finish,
    free,
    hold,
    is_question,
    leave,
    make_job,
    malloc,
    num_threads,
    result,
    spread,
    take,
    wait,
)
from ..native.vectors import BFLOAT16, FLOAT32, LANES, MAX_ROWS, dots, load, store, widen

__all__ = ["KINDS", "compile_kernel"]

KINDS = {"float32": FLOAT32, "uint16": BFLOAT16}
"""Types of the weight: numbers, or the bits of bfloat16."""
COLUMNS = 4
"""Outputs of a block that stays in registers."""
WIDEN_ROWS = 12
"""Rows from which weights are widened once, and not for every block of rows."""
UNITS_PER_THREAD = 8
LEAST_UNIT = 40_000
"""Multiplications of a unit at least: some 4 microseconds."""

I64 = np.int64(0)
X, WEIGHT, OUT, ROWS, INPUTS, OUTPUTS, UNIT, FIELDS_BYTES = *range(JOB, JOB + 56, 8), 56


def _make_participate(form: int) -> Any:
    width = 2 if form else 4

    @njit(error_model="numpy")
    def columns_of(x, weight, out, rows, inputs, outputs, scratch):
        """COLUMNS outputs of all rows, in blocks of nearly the same number of rows."""
        b, stride, is_wide = weight, inputs * width, rows > WIDEN_ROWS and form != FLOAT32
        if is_wide:
            widen(weight, scratch, COLUMNS * (inputs // LANES), form)
            b, stride = scratch, inputs * 4
        r, blocks = 0, (rows + MAX_ROWS - 1) // MAX_ROWS
        while blocks > 0:
            count = (rows - r + blocks - 1) // blocks
            left, target = x + r * inputs * 4, out + r * outputs * 4
            if is_wide:
                dots(left, inputs * 4, b, stride, inputs // LANES, target, outputs * 4, count, COLUMNS, FLOAT32)
            else:
                dots(left, inputs * 4, b, stride, inputs // LANES, target, outputs * 4, count, COLUMNS, form)
            r += count
            blocks -= 1

    @njit(error_model="numpy")
    def participate(job):
        x, weight, out = load(job + X, I64), load(job + WEIGHT, I64), load(job + OUT, I64)
        rows, inputs, outputs = load(job + ROWS, I64), load(job + INPUTS, I64), load(job + OUTPUTS, I64)
        size = load(job + UNIT, I64)
        unit = take(job)
        if unit >= 0:
            scratch = malloc(COLUMNS * inputs * 4)
            while unit >= 0:
                n, last = unit * size, min(outputs, (unit + 1) * size)
                while n + COLUMNS <= last:
                    columns_of(x, weight + n * inputs * width, out + n * 4, rows, inputs, outputs, scratch)
                    n += COLUMNS
                while n < last:
                    for r in range(rows):
                        dots(x + r * inputs * 4, inputs * 4, weight + n * inputs * width, inputs * width,
                             inputs // LANES, out + (r * outputs + n) * 4, outputs * 4, 1, 1, form)  # fmt: skip
                    n += 1
                finish(job)
                unit = take(job)
            free(scratch)
        leave(job)
        return I64

    return participate


def _make_handler(participate_name: str, version: tuple[int, int]) -> Any:
    major, minor = version

    @njit(error_model="numpy")
    def handler(frame):
        if is_question(frame):
            answer(frame, major, minor)
            return I64
        rows, inputs, outputs = dimension(frame, 0, 0), dimension(frame, 0, 1), dimension(frame, 1, 0)
        threads = num_threads(frame)
        size = max(outputs // (threads * UNITS_PER_THREAD), LEAST_UNIT // (rows * inputs) + 1)
        size = (size + COLUMNS - 1) // COLUMNS * COLUMNS
        units = (outputs + size - 1) // size
        job = make_job(units, FIELDS_BYTES)
        store(job + X, argument(frame, 0))
        store(job + WEIGHT, argument(frame, 1))
        store(job + OUT, result(frame))
        store(job + ROWS, rows)
        store(job + INPUTS, inputs)
        store(job + OUTPUTS, outputs)
        store(job + UNIT, size)
        hold(job)
        spread(frame, job, min(threads, units) - 1, address_of(participate_name))
        call(address_of(participate_name), job)
        wait(job)
        leave(job)
        return I64

    return handler


def compile_kernel(kind: str, version: tuple[int, int]) -> tuple[list[str], str]:
    """LLVM's text of the modules to link, and the name of the handler in them; kind: of KINDS, version: of XLA's
    foreign function interface.
    """
    signature = types.int64(types.int64)
    helper = cfunc(signature, error_model="numpy")(_make_participate(KINDS[kind]).py_func)
    llvm.add_symbol(helper.native_name, helper.address)  # Numba links the handler at once
    handler = cfunc(signature, error_model="numpy")(_make_handler(helper.native_name, version).py_func)
    return [helper.inspect_llvm(), handler.inspect_llvm()], handler.native_name
