"""The comparison with the reference catches the bugs that latent attention kernels would have.

As in test_planted_bugs.py; what the kernels share with paged attention is tried there.
"""

import functools
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels.latent_attention as op
from pallas_kernels import KernelInputs
from pallas_kernels.latent_attention.cases import CASES
from pallas_kernels.latent_attention.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant

BY_NAME = {case.name: case for case in CASES}
TILE, DECODE, PREFILL = "triton_tile.py", "triton_decode.py", "triton_prefill.py"

MUTANTS = (
    Mutant("rotated part of the score lost", TILE, "scores += plt.dot(q[1]", "scores += 0 * plt.dot(q[1]", "mixed_f32"),
    Mutant(
        "rotated part of keys read from the front",
        TILE,
        "(*where, d + latent.rank), mask)",
        "(*where, d), mask)",
        "mixed_f32",
    ),
    Mutant(
        "rotated part of queries read from the front",
        TILE,
        "load(ref, (row, d + latent.rank), mask)",
        "load(ref, (row, d), mask)",
        "mixed_f32",
    ),
    Mutant("scores in the wrong base", TILE, "(latent.scale * LOG2_E)", "latent.scale", "decode_split_f32"),
    Mutant("rows past the tile stored", TILE, "(m < self.count) & exists", "exists", "mixed_f32"),
    Mutant("second tile of heads over the first", DECODE, "row * H + tile * M", "row * H", "decode_h80"),
    Mutant("second tile of a prefill too", PREFILL, "tile.first * H + part", "tile.first * H", "mixed_f32_h80"),
    Mutant(
        "heads of a tile counted as queries",
        PREFILL,
        "lax.iota(jnp.int32, tiling.M) + part, H)",
        "lax.iota(jnp.int32, tiling.M) + part, 1)",
        "mixed_f32",
    ),
    Mutant("last queries of a row lost", PREFILL, "queries * H - part", "(queries - 1) * H - part", "mixed_f32"),
    Mutant(
        "keys of the tile's last query not read",
        PREFILL,
        "tile.position + queries",
        "tile.position + queries - 1",
        "mixed_f32",
    ),
)
TWINS = (
    Mutant("sum of values not rescaled", TILE, "softmax.o * shrink[:, None]", "softmax.o", "mixed_f32"),
    Mutant("sum of weights not rescaled", TILE, "softmax.l * shrink", "softmax.l", "mixed_f32"),
    Mutant("next page never fetched", TILE, "page_of(block + 1)", "page_of(block)", "mixed_f32"),
    Mutant(
        "part's weight forgets its sum",
        DECODE,
        "softmax.m + jnp.log2(softmax.l)",
        "softmax.m + 0 * jnp.log2(softmax.l)",
        "decode_split_f32",
    ),
)
"""Lines that paged attention has too, whose bugs the default run plants there."""


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
        kernel = importlib.import_module(f"{package}.triton_decode").latent_attention_decode
        static["num_splits"] = 3
    else:
        kernel = importlib.import_module(f"{package}.triton_prefill").latent_attention_prefill
    got = jax.jit(functools.partial(kernel, **static, interpret=True))(*inputs.args)
    error = np.abs(np.asarray(got.astype("float32")) - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(error, nan=np.inf).max() / BY_NAME[case_name].tolerance)


def _parameters() -> list:
    mutants = [(mutant, ()) for mutant in MUTANTS] + [(mutant, (pytest.mark.slow,)) for mutant in TWINS]
    return [pytest.param(m, marks=marks, id=m.bug.replace(" ", "_").replace("'", "")) for m, marks in mutants]


@pytest.mark.parametrize("mutant", _parameters())
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mutant.plant("latent_attention", tmp_path, monkeypatch)
    assert _disagreement(f"{package}.latent_attention", mutant.case) > 1


@pytest.mark.parametrize("case_name", ["decode_h80", "mixed_f32"])
def test_without_a_bug_the_same_check_passes(case_name: str) -> None:
    assert _disagreement(op.__name__, case_name) <= 1
