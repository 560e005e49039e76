"""What native code needs of XLA: its call frames (`xla/ffi/api/c_api.h`), and its threads.

All of it is inlined into functions that Numba compiles; addresses are i64. A job is work in units that several
threads take from one counter: a block of memory that begins with counters, and that its last holder frees.
"""

from collections import namedtuple
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .memory import ZERO_I32, ZERO_I64, load_i32, load_i64, store

__all__ = [
    "address_of", "answer", "argument", "call", "dimension", "element_type", "finish", "free", "hold", "is_question",
    "job_fields", "leave", "make_job", "malloc", "num_threads", "result", "spread", "take", "wait",
]  # fmt: skip

_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _RESULTS = 8, 16, 24, 72, 112  # in XLA_FFI_CallFrame
_TYPE, _DATA, _DIMENSIONS = 16, 24, 40  # in XLA_FFI_Buffer
_ERROR_DESTROY, _SCHEDULE, _NUM_THREADS = 64, 136, 144  # functions in XLA_FFI_Api
_METADATA = 1  # XLA_FFI_Extension_Metadata
_NEXT, _TOTAL, _DONE, _HOLDERS = 0, 8, 16, 24  # in a job
_COUNTERS_BYTES = 32
_TURNS = 2000
"""How often a thread looks again before it offers its core to another."""

malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


def job_fields(words: str, floats: str = "") -> Any:
    """Where the fields of a job lie, in bytes from its beginning, and the size of the whole as `num_bytes`.

    A named tuple with an attribute for each name in `words` (i64, one after the other) and in `floats` (float32, after
    them). Numba reads it as constants.
    """
    names_of_words, names_of_floats = words.split(), floats.split()
    first = _COUNTERS_BYTES + 8 * len(names_of_words)
    offsets = [*range(_COUNTERS_BYTES, first, 8), *(first + 4 * n for n in range(len(names_of_floats)))]
    num_bytes = first + (4 * len(names_of_floats) + 7) // 8 * 8
    return namedtuple("JobFields", [*names_of_words, *names_of_floats, "num_bytes"])(*offsets, num_bytes)


@intrinsic
def _fetch_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the i64 at an address, for all threads; what it was before."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def call(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call the function at an address with one word; what it returns as a word."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        place = builder.inttoptr(args[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(place, [args[1]])

    return types.int64(types.int64, types.int64), code


@intrinsic(prefer_literal=True)
def address_of(typingctx: Any, name: Any) -> Any:
    """The address of a function that is linked by its name (a constant)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(word, [word]), signature.args[0].literal_value
        )
        return builder.ptrtoint(function, word)

    return types.int64(name), code


@intrinsic
def _words(typingctx: Any) -> Any:
    """The address of eight words that last as long as the function."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(cgutils.alloca_once(builder, ir.IntType(64), size=8), ir.IntType(64))

    return types.int64(), code


@njit(error_model="numpy")
def is_question(frame):
    """Whether XLA only asks which version of its interface a handler was made for; `answer` then answers."""
    extension = load_i64(frame + _EXTENSION)
    return extension != 0 and load_i32(extension + 8) == _METADATA


@njit(error_model="numpy")
def answer(frame, major, minor):
    """Tell the version; no traits."""
    metadata = load_i64(load_i64(frame + _EXTENSION) + 24)
    store(metadata + 24, np.int32(major))
    store(metadata + 28, np.int32(minor))
    store(metadata + 32, ZERO_I32)


@njit(error_model="numpy")
def _buffer(frame, list_at, i):
    return load_i64(load_i64(frame + list_at) + 8 * i)


@njit(error_model="numpy")
def argument(frame, i):
    """The address of an argument's numbers."""
    return load_i64(_buffer(frame, _ARGUMENTS, i) + _DATA)


@njit(error_model="numpy")
def dimension(frame, i, axis):
    """The size of an argument along an axis."""
    return load_i64(load_i64(_buffer(frame, _ARGUMENTS, i) + _DIMENSIONS) + 8 * axis)


@njit(error_model="numpy")
def element_type(frame, i):
    """The number that xla::PrimitiveType has for an argument's type."""
    return np.int64(load_i32(_buffer(frame, _ARGUMENTS, i) + _TYPE))


@njit(error_model="numpy")
def result(frame):
    """The address of the first result's numbers."""
    return load_i64(_buffer(frame, _RESULTS, 0) + _DATA)


@njit(error_model="numpy")
def _drop(api, error):
    """Free an error that is none: without a helper the caller does all the work."""
    args = _words()
    store(args, np.int64(24))
    store(args + 8, ZERO_I64)
    store(args + 16, error)
    call(load_i64(api + _ERROR_DESTROY), args)


@njit(error_model="numpy")
def num_threads(frame):
    """How many threads XLA has for a program; 1 where it does not say."""
    args, count = _words(), _words()
    store(count, ZERO_I64)
    store(args, np.int64(32))
    store(args + 8, ZERO_I64)
    store(args + 16, load_i64(frame + _CONTEXT))
    store(args + 24, count)
    api = load_i64(frame + _API)
    error = call(load_i64(api + _NUM_THREADS), args)
    if error != 0:
        _drop(api, error)
    return max(1, load_i64(count))


@njit(error_model="numpy")
def make_job(units, num_bytes):
    """A job of so many units, of the size of its fields (`job_fields`); the maker holds it."""
    job = malloc(np.int64(num_bytes))
    store(job + _NEXT, ZERO_I64)
    store(job + _TOTAL, np.int64(units))
    store(job + _DONE, ZERO_I64)
    store(job + _HOLDERS, np.int64(1))
    return job


@njit(error_model="numpy")
def hold(job):
    """Keep a job until one more has left it."""
    _fetch_add(job + _HOLDERS, 1)


@njit(error_model="numpy")
def leave(job):
    """Let go of a job; the last one frees it."""
    if _fetch_add(job + _HOLDERS, -1) == 1:
        free(job)


@njit(error_model="numpy")
def spread(frame, job, helpers, function):
    """Ask so many of XLA's threads to call the function at an address, which takes units of the job and leaves it.

    Nobody waits for a helper to come: one that finds no unit left only leaves. So a pool of threads that are all
    busy, or all in this function, cannot block.
    """
    api, args = load_i64(frame + _API), _words()
    for _ in range(helpers):
        hold(job)
        store(args, np.int64(40))
        store(args + 8, ZERO_I64)
        store(args + 16, load_i64(frame + _CONTEXT))
        store(args + 24, np.int64(function))
        store(args + 32, np.int64(job))
        error = call(load_i64(api + _SCHEDULE), args)
        if error != 0:
            _drop(api, error)
            leave(job)
            break


@njit(error_model="numpy")
def take(job):
    """The next unit, or -1 where all are taken."""
    unit = _fetch_add(job + _NEXT, 1)
    return unit if unit < load_i64(job + _TOTAL) else -1


@njit(error_model="numpy")
def finish(job):
    """One unit that was taken is done."""
    _fetch_add(job + _DONE, 1)


@njit(error_model="numpy")
def wait(job):
    """Until every unit is done: of each helper at most one is on its way."""
    turns = 0
    while _fetch_add(job + _DONE, 0) < load_i64(job + _TOTAL):
        turns += 1
        if turns > _TURNS:
            _sched_yield()
