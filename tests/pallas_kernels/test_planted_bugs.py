"""The comparison with the reference catches the bugs that paged attention kernels really have.

Each mutant changes one expression in a copy of the kernel folder; some quick case must then disagree.
"""

import contextlib
import functools
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from pallas_kernels import KernelInputs
from pallas_kernels.paged_attention.cases import CASES
from pallas_kernels.paged_attention.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant, disagreement, module

BY_NAME = {case.name: case for case in CASES}

TILE, DECODE, PREFILL, PARTS = "triton_tile.py", "triton_decode.py", "triton_prefill.py", "decode_parts.py"

MUTANTS = (
    Mutant("query cannot see itself", TILE, "<= position[:, None])", "< position[:, None])", "mixed_window_f32"),
    Mutant("query sees the next token", TILE, "<= position[:", "<= 1 + position[:", "prefill_chunk_f32"),
    Mutant("window ignored", TILE, "if window is not None:", "if False:", "decode_window_f32"),
    Mutant(
        "window one too wide",
        TILE,
        "> position[:, None] - window",
        ">= position[:, None] - window",
        "mixed_window_f32",
    ),
    Mutant("values before the window kept", TILE, "if low is not None and", "if False and", "mixed_window_sinks"),
    Mutant("soft cap ignored", TILE, "if head.soft_cap is None:", "if True:", "decode_window_soft_cap_d256"),
    Mutant("sum of values not rescaled", TILE, "softmax.o * shrink[:, None]", "softmax.o", "prefill_chunk_f32"),
    Mutant("sum of weights not rescaled", TILE, "softmax.l * shrink", "softmax.l", "prefill_chunk_f32"),
    Mutant("next page never fetched", TILE, "page_of(block + 1)", "page_of(block)", "prefill_chunk_f32"),
    Mutant(
        "one dead key read",
        TILE,
        "key_position < stop, shape",
        "key_position <= stop, shape",
        "decode_f32_d80",
    ),
    Mutant("parts averaged, not weighed", DECODE, "jnp.exp2(lse - largest)", "jnp.ones_like(lse)", "decode_split_f32"),
    Mutant(
        "part's weight forgets its sum",
        DECODE,
        "softmax.m + jnp.log2(softmax.l)",
        "softmax.m + 0 * jnp.log2(softmax.l)",
        "decode_split_f32",
    ),
    Mutant("sink not relative to the largest", DECODE, "exp2(sink - largest)", "exp2(sink)", "decode_sinks_f32"),
    Mutant("sink ignored", TILE, "softmax.l + jnp.exp2(sink - softmax.m)", "softmax.l", "mixed_sinks_f32"),
    Mutant(
        "sink of another head",
        PREFILL,
        "lax.rem(lax.iota(jnp.int32, tiling.M), head.G)",
        "lax.iota(jnp.int32, tiling.M)",
        "mixed_sinks_f32",
    ),
    Mutant("scale of keys ignored", TILE, "scores *= _load_scale(", "scores *= 0 * _load_scale(", "decode_int8_f32"),
    Mutant(
        "scales exchanged",
        TILE,
        "weights * _load_scale(scales[1]",
        "weights * _load_scale(scales[0]",
        "mixed_fp8_f32_d80",
    ),
    Mutant(
        "scale of another head",
        TILE,
        "(page, kv_head, offset, jnp.",
        "(page, 0 * kv_head, offset, jnp.",
        "mixed_fp8_f32_d80",
    ),
    Mutant(
        "scale of a neighbour",
        TILE,
        "offset = key_position & (head.B - 1)\n    mask",
        "offset = (key_position + 1) & (head.B - 1)\n    mask",
        "decode_int8_f32",
    ),
    Mutant(
        "dead scale read",
        TILE,
        "mask = None if stop is None else key_position < stop",
        "mask = None",
        "decode_int8_f32",
    ),
    Mutant("parts overlap", PARTS, "jnp.minimum(first + self.share(length), end)", "end", "decode_split_f32"),
    Mutant("remainder of a row lost", PARTS, "first + (self._cap(parts) - 1)", "first", "decode_split_f32"),
    Mutant(
        "window starts a block late",
        PARTS,
        "jnp.maximum(length - self.window, 0)",
        "length - self.window + self.C",
        "decode_window_f32",
    ),
    Mutant(
        "part of the row before", PARTS, "is_before = ends <= number", "is_before = ends < number", "decode_f32_d80"
    ),
    Mutant(
        "rows before not taken off", PARTS, "number - jnp.where(is_before, ends, 0).max(0)", "number", "decode_f32_d80"
    ),
    Mutant("first part over and over", DECODE, "first + turn * step", "first + 0 * turn * step", "decode_f32_d80"),
    Mutant("last turn lost", DECODE, "- first, 0) + (step - 1), step)", "- first, 0), step)", "decode_split_f32"),
    Mutant("part that is not there weighed", DECODE, "mask=part < parts", "mask=part <= parts", "decode_f32_d80"),
    Mutant("part that is not there read", DECODE, "mask=(rows < parts)", "mask=(rows <= parts)", "decode_f32_d80"),
    Mutant(
        "wrong query heads",
        DECODE,
        "(row, kv_head * head.G + g, d)",
        "(row, kv_head + g, d)",
        "decode_f32_d80",
    ),
    Mutant(
        "mask dropped a block late",
        PREFILL,
        "jnp.maximum(tile.position + 1, 0)",
        "jnp.maximum(tile.position + tiling.C, 0)",
        "prefill_chunk_f32",
    ),
    Mutant("tile spills into the next row", PREFILL, "token < tile.end", "token <= tile.end", "prefill_chunk_f32"),
    Mutant("padding never written", PREFILL, "+ S + 1", "+ S", "mixed_window_f32"),
    Mutant(
        "padding masked by no row",
        PREFILL,
        "jnp.where(row < S, len_ref",
        "jnp.where(row <= S, len_ref",
        "prefill_gqa4_d128_b64",
    ),
    Mutant("row found one tile late", PREFILL, "+ rows <= tile", "+ rows < tile", "mixed_f32_d96_g7_b32"),
)


@functools.cache
def _expected(case_name: str) -> tuple[KernelInputs, np.ndarray]:
    inputs = BY_NAME[case_name].make(11)
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    return inputs, np.asarray(expected.astype("float32"))


def _disagreement(package: str, case_name: str) -> float:
    """The error of a package's Triton kernels on one case."""
    inputs, expected = _expected(case_name)
    static = dict(inputs.static)
    if static.pop("decode"):
        # Three uneven parts; the choice for a real GPU would leave these small rows with even ones.
        # Two programs, so that each takes several parts.
        decode = module(package, "paged_attention.triton_decode")
        choose = decode.choose_splitting
        kernel = functools.partial(decode.paged_attention_decode, num_splits=3)
        fewer = mock.patch.object(
            decode, "choose_splitting", lambda *args, **static: replace(choose(*args, **static), programs=2)
        )
    else:
        kernel = module(package, "paged_attention.triton_prefill").paged_attention_prefill
        fewer = contextlib.nullcontext()
    with fewer:
        return disagreement(functools.partial(kernel, **static, interpret=True), inputs, expected, BY_NAME[case_name])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = mutant.plant("paged_attention", tmp_path, monkeypatch)
    assert _disagreement(package, mutant.case) > 1


@pytest.mark.parametrize("case_name", ["decode_split_f32", "prefill_chunk_f32"])
def test_without_a_bug_the_same_check_passes(case_name: str):
    assert _disagreement("pallas_kernels", case_name) <= 1
