"""The comparison with the reference catches the bugs that grouped products over experts really have.

Each mutant changes one expression in a copy of the kernels; some quick case must then disagree.
"""

import functools
import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import KernelInputs
from pallas_kernels.moe.cases import CASES
from pallas_kernels.moe.reference import reference

FOLDER = Path(pallas_kernels.__file__).parent
BY_NAME = {case.name: case for case in CASES}
KERNELS, ROUTE = "triton_moe.py", "route.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug: `old` becomes `new` in `file`, and `case` must notice."""

    bug: str
    file: str
    old: str
    new: str
    case: str = "decode_f32"


MUTANTS = (
    Mutant("gate and up exchanged", KERNELS, "activate(sums[0], sums[1])", "activate(sums[1], sums[0])"),
    Mutant("bias of gate for up too", KERNELS, "(expert, half, n), n <", "(expert, 0, n), n <", "prefill_f32"),
    Mutant("weight of another token", KERNELS, "router_ref.at[pair]", "router_ref.at[row]"),
    Mutant("tokens not gathered", KERNELS, "lax.div(pair, product.J) if is_first", "row if is_first"),
    Mutant("last row of an expert lost", KERNELS, "is_row = row < end", "is_row = row < end - 1"),
    Mutant("tiles of an expert all alike", KERNELS, "+ (tile - before) * M", "+ 0 * tile * M", "prefill_f32"),
    Mutant("expert found a tile late", KERNELS, "is_over = last <= tile", "is_over = last < tile"),
    Mutant("inputs past the end read", KERNELS, "product.K % tiling.K == 0, ", "True, "),
    Mutant("last inputs never read", KERNELS, "jnp.int32(pl.cdiv(product.K, tiling.K))", "product.K // tiling.K"),
    Mutant("what nobody wrote is summed", KERNELS, "jnp.where(is_here[:, :, None]", "jnp.where(True"),
    Mutant("tiles rounded down", ROUTE, "-(-jnp.diff(start) // M)", "jnp.diff(start) // M"),
    Mutant("tiles before an expert alone", ROUTE, "<= expert[:X, None]", "< expert[:X, None]"),
    Mutant("expert starts after itself", ROUTE, "ids[None, :] < expert[:, None]", "ids[None, :] <= expert[:, None]"),
    Mutant("equal experts in one place", ROUTE, "(pair[None, :] < pair[:, None])", "(pair[None, :] < 0)"),
    Mutant("no room for tiles that are not full", ROUTE, "pairs // M + X", "pairs // M", "prefill_of_one_expert"),
)


@functools.cache
def _expected(case_name: str) -> tuple[KernelInputs, np.ndarray]:
    inputs = BY_NAME[case_name].make(11)
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    return inputs, np.asarray(expected)


def _disagreement(package: str, case_name: str) -> float:
    """Largest error of a package's Triton kernels on one case, as a multiple of the tolerance."""
    inputs, expected = _expected(case_name)
    kernel = importlib.import_module(f"{package}.moe.triton_moe").moe_triton
    got = np.asarray(jax.jit(functools.partial(kernel, **inputs.static, interpret=True))(*inputs.args))
    error = np.abs(got - expected) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(error, nan=np.inf).max() / BY_NAME[case_name].tolerance)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug.replace(" ", "_"))
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch):
    name = f"moe_mutant_{MUTANTS.index(mutant)}"
    shutil.copytree(FOLDER, tmp_path / name, ignore=shutil.ignore_patterns("cases.py", "__pycache__"))
    path = tmp_path / name / "moe" / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.old!r} stands {source.count(mutant.old)} times in {mutant.file}"
    path.write_text(source.replace(mutant.old, mutant.new))
    monkeypatch.syspath_prepend(tmp_path)
    assert _disagreement(name, mutant.case) > 1


@pytest.mark.parametrize("case_name", sorted({mutant.case for mutant in MUTANTS}))
def test_without_a_bug_the_same_check_passes(case_name: str):
    assert _disagreement(pallas_kernels.__name__, case_name) <= 1
