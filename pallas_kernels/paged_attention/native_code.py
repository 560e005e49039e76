"""Paged attention for CPUs, the code that Numba compiles: flash attention over the pages of each row.

A unit of work is one tile of neighbouring queries of a row with one KV head: the query heads of its group are packed
below each other, and keys come in blocks that begin at multiples of BLOCK. What a query gets depends on its own row
alone, and not on the tile, the chunk or the batch that it is part of. Addresses are i64, sizes are in bytes where
their name says so, and letters are those of `paged_attention`; G query heads share a KV head.
"""

from typing import Any

import numpy as np
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
)  # fmt: skip
from ..native.memory import ZERO_F32, ZERO_I64, load_f32, load_i32, load_i64, load_u8, prefetch, store
from ..native.products import product
from ..native.rows import transpose, weigh
from ..native.vector_ir import BFLOAT16, FLOAT16, FLOAT32, LANES, MAX_ROWS, VECTORS

__all__ = ["KINDS", "make_handler", "make_participate"]

KINDS = {"float32": FLOAT32, "uint16": BFLOAT16, "float16": FLOAT16, "int8": 3, "uint8": 4}
"""Types of the pages: numbers, the bits of bfloat16, and 8-bit integers or the bits of float8_e4m3fn with scales."""
BLOCK = 64
"""Keys that a tile meets at a time."""
TILE_ROWS = 96
"""Queries of a tile times the heads of a group, or one query where a group is larger."""
SPREAD_COST = 200_000
"""Work, in units of some 0.1 ns, from which waking another thread pays."""

GROUPS = BLOCK // LANES
WIDTH = VECTORS[0] * LANES
ONE, MASKED, TINY = np.float32(1), np.float32(-1e30), np.float32(1e-30)
EXPONENT, SUBNORMAL = np.float32(2.0**120), np.float32(2.0**-9)
JOB = job_fields(
    "q k_pages v_pages table starts lengths sinks out k_scale v_scale N K G B D Dv P decode window", floats="scale cap"
)
"""Addresses, then sizes and flags."""


def _multiply(form: int, fresh: int) -> Any:
    """`product` of any number of rows and any width that LANES divides."""
    width_bytes = 2 if form else 4

    @njit(error_model="numpy")
    def multiply(a, a_stride, bases, groups, b_stride, c, c_stride, keep, rows, columns):
        for r in range(0, rows, MAX_ROWS):
            count, left, target = min(MAX_ROWS, rows - r), a + r * a_stride, c + r * c_stride
            n = 0
            while columns - n >= WIDTH:
                product(left, a_stride, bases, groups, b_stride, n * width_bytes, target + 4 * n, c_stride,
                        keep + 4 * r, count, VECTORS[0], form, fresh)  # fmt: skip
                n += WIDTH
            while n < columns:
                product(left, a_stride, bases, groups, b_stride, n * width_bytes, target + 4 * n, c_stride,
                        keep + 4 * r, count, 1, form, fresh)  # fmt: skip
                n += LANES

    return multiply


@njit(error_model="numpy")
def _tiles(s, starts, lengths, decode, tile_queries):
    """Row s's first token, its number of queries, and the number of tiles that these fill."""
    first = s if decode else np.int64(load_i32(starts + 4 * s))
    last = s + 1 if decode else np.int64(load_i32(starts + 4 * s + 4))
    queries = max(0, last - first) if load_i32(lengths + 4 * s) > 0 else 0
    return first, queries, (queries + tile_queries - 1) // tile_queries


@njit(error_model="numpy")
def _token(table, position, head, N, K, B):
    """Where a position's key and value are, counted in tokens of one head; some place where the table is wrong."""
    page = min(max(np.int64(load_i32(table + position // B * 4)), 0), N - 1)
    return (page * K + head) * B + position % B


@njit(error_model="numpy")
def _tile_queries(G):
    return max(1, TILE_ROWS // G)


@njit(error_model="numpy")
def _zero(address, count):
    for i in range(count):
        store(address + 4 * i, ZERO_F32)


def make_participate(kind: int) -> Any:
    """The function that takes units of a job until there is none, for pages of one of KINDS."""
    has_scales = kind > FLOAT16
    form = FLOAT32 if has_scales else kind  # of what a product reads
    held_bytes, used_bytes = (4, 2, 2, 1, 1)[kind], 2 if form else 4
    scores_of, add_values = _multiply(FLOAT32, 1), _multiply(form, 0)

    @njit(error_model="numpy")
    def copy_tokens(pages, scales, table, at, low, high, head, N, K, B, D, target):
        """Positions from `at` on as a product reads them; zeros where not low <= position < high: these may be NaN."""
        for i in range(LANES):
            into = target + i * D * used_bytes
            if at + i < low or at + i >= high:
                for d in range(0, D * used_bytes, 8):
                    store(into + d, ZERO_I64)
                continue
            token = _token(table, at + i, head, N, K, B)
            source = pages + token * D * held_bytes
            if not has_scales:
                for d in range(0, D * used_bytes, 8):
                    store(into + d, load_i64(source + d))
                continue
            size = load_f32(scales + 4 * token)
            for d in range(D):
                bits = np.int32(load_u8(source + d))
                if kind == 3:
                    value = np.float32(np.int8(bits))
                elif bits & 0x78:  # sign, 4 bits of exponent, 3 of mantissa
                    store(into + 4 * d, np.int32((bits & 0x80) << 24 | (bits & 0x7F) << 20))
                    value = load_f32(into + 4 * d) * EXPONENT
                else:
                    value = np.float32(bits & 7) * (-SUBNORMAL if bits & 0x80 else SUBNORMAL)
                store(into + 4 * d, value * size)

    @njit(error_model="numpy")
    def attend_tile(job, table, first, queries, position, head, sizes, scratch):
        """One tile with one KV head; its first query is token `first`, at `position` of its row."""
        N, K, G, B, D, Dv, _P, _decode, window = sizes
        k_pages, v_pages = load_i64(job + JOB.k_pages), load_i64(job + JOB.v_pages)
        k_scale, v_scale, sinks = load_i64(job + JOB.k_scale), load_i64(job + JOB.v_scale), load_i64(job + JOB.sinks)
        scale, cap = load_f32(job + JOB.scale), load_f32(job + JOB.cap)
        rows, row_bytes = queries * G, D * held_bytes
        a, keys, scores, sums, values, state, keep, key_bases, value_bases, _ = _places(scratch, rows, D, Dv)
        for i in range(queries):
            for g in range(G):
                source = load_i64(job + JOB.q) + ((first + i) * K * G + head * G + g) * D * 4
                for d in range(D):
                    store(a + ((i * G + g) * D + d) * 4, load_f32(source + d * 4) * scale)
        for r in range(rows):
            store(state + r * 8, MASKED)
            store(state + r * 8 + 4, ZERO_F32)
        _zero(sums, rows * Dv)
        for i in range(D // LANES):
            store(key_bases + i * 8, keys + i * LANES * BLOCK * 4)
        high = position + queries
        low = max(0, position - window + 1) if window > 0 else 0
        for at in range(low // BLOCK * BLOCK, min(high, low // BLOCK * BLOCK + BLOCK), LANES):
            prefetch(k_pages + _token(table, at, head, N, K, B) * row_bytes, LANES * row_bytes)
        for start in range(low // BLOCK * BLOCK, high, BLOCK):
            for at in range(start, min(high, start + BLOCK), LANES):
                prefetch(v_pages + _token(table, at, head, N, K, B) * row_bytes, LANES * row_bytes)
            for i in range(GROUPS):
                at = start + i * LANES
                if at + BLOCK < high:
                    prefetch(k_pages + _token(table, at + BLOCK, head, N, K, B) * row_bytes, LANES * row_bytes)
                copy = values + i * LANES * D * used_bytes
                is_copied = has_scales or B % LANES != 0
                token = ZERO_I64  # any place: what is read there is masked
                if not is_copied and at + LANES > low and at < high:
                    token = _token(table, at, head, N, K, B)
                source, stride = k_pages + token * row_bytes, row_bytes
                if is_copied:
                    copy_tokens(k_pages, k_scale, table, at, low, high, head, N, K, B, D, copy)
                    source, stride = copy, D * used_bytes
                for d in range(0, D, LANES):
                    transpose(source + d * used_bytes, stride, keys + (d * BLOCK + i * LANES) * 4, BLOCK * 4, form)
                source = v_pages + token * row_bytes
                if is_copied or at < low or at + LANES > high:
                    copy_tokens(v_pages, v_scale, table, at, low, high, head, N, K, B, D, copy)
                    source = copy
                store(value_bases + i * 8, source)
            scores_of(a, D * 4, key_bases, D // LANES, BLOCK * 4, scores, BLOCK * 4, 0, rows, BLOCK)
            for r in range(rows):
                own = position + r // G
                oldest = own - window + 1 if window > 0 else 0
                weigh(scores + r * BLOCK * 4, oldest - start, own + 1 - start, cap, state + r * 8, keep + r * 4, GROUPS)
            add_values(scores, BLOCK * 4, value_bases, GROUPS, D * used_bytes, sums, Dv * 4, keep, rows, Dv)
        for r in range(rows):
            total = load_f32(state + r * 8 + 4)
            if sinks != 0:
                total += np.exp(load_f32(sinks + (head * G + r % G) * 4) - load_f32(state + r * 8))
            share = ONE / max(total, TINY)
            target = load_i64(job + JOB.out) + ((first + r // G) * K * G + head * G + r % G) * Dv * 4
            for d in range(Dv):
                store(target + d * 4, load_f32(sums + (r * Dv + d) * 4) * share)

    @njit(error_model="numpy")
    def _places(scratch, rows, D, Dv):
        """Where a thread keeps queries, keys, scores, sums, copied values, the softmax, factors, addresses; the end."""
        a = (scratch + 63) // 64 * 64
        keys = a + rows * D * 4
        scores = keys + D * BLOCK * 4
        sums = scores + rows * BLOCK * 4
        values = sums + rows * Dv * 4
        state = values + BLOCK * D * used_bytes
        keep = state + rows * 8
        key_bases = (keep + rows * 4 + 7) // 8 * 8
        value_bases = key_bases + D // LANES * 8
        return a, keys, scores, sums, values, state, keep, key_bases, value_bases, value_bases + GROUPS * 8

    @njit(error_model="numpy")
    def participate(job):
        N, K, G, B, D, Dv, P, decode, window = (
            load_i64(job + JOB.N), load_i64(job + JOB.K), load_i64(job + JOB.G),
            load_i64(job + JOB.B), load_i64(job + JOB.D), load_i64(job + JOB.Dv),
            load_i64(job + JOB.P), load_i64(job + JOB.decode), load_i64(job + JOB.window),
        )  # fmt: skip
        starts, lengths, tile_queries = load_i64(job + JOB.starts), load_i64(job + JOB.lengths), _tile_queries(G)
        unit = take(job)
        if unit >= 0:
            scratch = malloc(_places(ZERO_I64, tile_queries * G, D, Dv)[9] + 64)
            s = before = 0
            first, queries, tiles = _tiles(0, starts, lengths, decode, tile_queries)
            while unit >= 0:
                while unit >= before + tiles * K:
                    before += tiles * K
                    s += 1
                    first, queries, tiles = _tiles(s, starts, lengths, decode, tile_queries)
                done = (unit - before) // K * tile_queries
                position = load_i32(lengths + 4 * s) - queries + done
                attend_tile(
                    job, load_i64(job + JOB.table) + s * P * 4, first + done, min(queries - done, tile_queries),
                    position, (unit - before) % K, (N, K, G, B, D, Dv, P, decode, window), scratch,
                )  # fmt: skip
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
        T, H, D = dimension(frame, 0, 0), dimension(frame, 0, 1), dimension(frame, 0, 2)
        N, K, B = dimension(frame, 1, 0), dimension(frame, 1, 1), dimension(frame, 1, 2)
        S, P = dimension(frame, 3, 0), dimension(frame, 3, 1)
        integers, floats = argument(frame, 9), argument(frame, 10)
        Dv, window = np.int64(load_i32(integers)), np.int64(load_i32(integers + 4))
        decode, has_sinks = np.int64(load_i32(integers + 8)), load_i32(integers + 12)
        starts, lengths, out = argument(frame, 4), argument(frame, 5), result(frame)
        tile_queries = _tile_queries(H // K)
        units = cost = end = 0
        for s in range(S):
            first, queries, tiles = _tiles(s, starts, lengths, decode, tile_queries)
            units += tiles * K
            cost += tiles * load_i32(lengths + 4 * s) * D * (8 * K + min(queries, tile_queries) * H)
            if queries > 0:
                end = max(end, first + queries)
            elif decode:
                _zero(out + s * H * Dv * 4, H * Dv)
        _zero(out + end * H * Dv * 4, (T - end) * H * Dv)
        if units == 0:
            return ZERO_I64
        job = make_job(units, JOB.num_bytes)
        for i in range(6):
            store(job + JOB.q + 8 * i, argument(frame, i))
        store(job + JOB.sinks, argument(frame, 6) if has_sinks else ZERO_I64)
        store(job + JOB.out, out)
        store(job + JOB.k_scale, argument(frame, 7))
        store(job + JOB.v_scale, argument(frame, 8))
        store(job + JOB.N, N)
        store(job + JOB.K, K)
        store(job + JOB.G, H // K)
        store(job + JOB.B, B)
        store(job + JOB.D, D)
        store(job + JOB.Dv, Dv)
        store(job + JOB.P, P)
        store(job + JOB.decode, decode)
        store(job + JOB.window, window)
        store(job + JOB.scale, load_f32(floats))
        store(job + JOB.cap, load_f32(floats + 4))
        hold(job)
        if cost > SPREAD_COST:
            spread(frame, job, min(num_threads(frame), units) - 1, address_of(participate_name))
        call(address_of(participate_name), job)
        wait(job)
        leave(job)
        return ZERO_I64

    return handler
