"""The comparison with the reference catches the bugs that paged attention kernels really have.

Each mutant changes one expression in a copy of the kernel folder; some quick case must then disagree.
"""

import functools
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels.paged_attention as op
from pallas_kernels import KernelInputs
from pallas_kernels.paged_attention.cases import CASES
from pallas_kernels.paged_attention.reference import reference

FOLDER = Path(op.__file__).parent
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug: `old` becomes `new` in `file`, and `case` must notice."""

    bug: str
    file: str
    old: str
    new: str
    case: str


TILE, DECODE, PREFILL = "triton_tile.py", "triton_decode.py", "triton_prefill.py"

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
    Mutant("parts averaged, not weighed", DECODE, "jnp.exp2(lse - largest)", "1.0", "decode_split_f32"),
    Mutant(
        "part's weight forgets its sum",
        DECODE,
        "softmax.m + jnp.log2(",
        "softmax.m + 0 * jnp.log2(",
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
    Mutant("splits overlap", DECODE, "jnp.minimum(first + share, end)", "end", "decode_split_f32"),
    Mutant("remainder of the split lost", DECODE, "end - first + (splits - 1)", "end - first", "decode_split_f32"),
    Mutant(
        "window starts a block late",
        DECODE,
        "jnp.maximum(length - window, 0)",
        "length - window + C",
        "decode_window_f32",
    ),
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


@pytest.fixture(params=MUTANTS, ids=lambda mutant: mutant.bug.replace(" ", "_").replace("'", ""))
def mutant(request) -> Mutant:
    return request.param


@functools.cache
def _expected(case_name: str) -> tuple[KernelInputs, np.ndarray]:
    inputs = BY_NAME[case_name].make(11)
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    return inputs, np.asarray(expected.astype("float32"))


def _disagreement(package: str, case_name: str) -> float:
    """Largest error of a package's Triton kernels on one case, as a multiple of the tolerance."""
    inputs, expected = _expected(case_name)
    static = dict(inputs.static)
    if static.pop("decode"):
        # Three uneven parts; the choice for a real GPU would leave these small rows with even ones.
        kernel = importlib.import_module(f"{package}.triton_decode").paged_attention_decode
        static["num_splits"] = 3
    else:
        kernel = importlib.import_module(f"{package}.triton_prefill").paged_attention_prefill
    got = jax.jit(functools.partial(kernel, **static, interpret=True))(*inputs.args)
    error = np.abs(np.asarray(got.astype("float32")) - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(error, nan=np.inf).max() / BY_NAME[case_name].tolerance)


def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch):
    name = f"mutant_{MUTANTS.index(mutant)}"
    shutil.copytree(FOLDER, tmp_path / name, ignore=shutil.ignore_patterns("cases.py", "__pycache__"))
    path = tmp_path / name / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.old!r} stands {source.count(mutant.old)} times in {mutant.file}"
    path.write_text(source.replace(mutant.old, mutant.new))
    monkeypatch.syspath_prepend(tmp_path)
    assert _disagreement(name, mutant.case) > 1


@pytest.mark.parametrize("case_name", ["decode_split_f32", "prefill_chunk_f32"])
def test_without_a_bug_the_same_check_passes(case_name: str):
    assert _disagreement(op.__name__, case_name) <= 1
