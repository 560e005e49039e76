"""The comparison with the reference catches the bugs that grouped products over experts really have.

Each mutant changes one expression in a copy of the kernels; some quick case must then disagree.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import KernelInputs
from pallas_kernels.moe import PackedExperts
from pallas_kernels.moe.cases import CASES
from pallas_kernels.moe.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant, disagreement, module

BY_NAME = {case.name: case for case in CASES}
KERNELS, ROUTE, WEIGHTS = "triton_moe.py", "route.py", "triton_weights.py"
DECODE, INT4, CUT = "decode_f32", "decode_int4_f32", "decode_mxfp4_cut_f32"
PLANES = "lax.div(n, product.N // 2), lax.rem(n, product.N // 2)"


MUTANTS = (
    Mutant("gate and up exchanged", KERNELS, "activate(sums[0], sums[1])", "activate(sums[1], sums[0])", DECODE),
    Mutant("bias of gate for up too", KERNELS, "(expert, half, n), n <", "(expert, 0, n), n <", "prefill_f32"),
    Mutant("weight of another token", KERNELS, "router_ref.at[pair]", "router_ref.at[row]", DECODE),
    Mutant("tokens not gathered", KERNELS, "lax.div(pair, product.J) if is_first", "row if is_first", DECODE),
    Mutant("last row of an expert lost", KERNELS, "is_row = row < end", "is_row = row < end - 1", DECODE),
    Mutant("tiles of an expert all alike", KERNELS, "+ (tile - before) * M", "+ 0 * tile * M", "prefill_f32"),
    Mutant("expert found a tile late", KERNELS, "is_over = last <= tile", "is_over = last < tile", DECODE),
    Mutant(
        "inputs past the end read", WEIGHTS, "None if columns % tiling.K == 0 else k <", "None if True else k <", DECODE
    ),
    Mutant("last inputs never read", WEIGHTS, "jnp.int32(pl.cdiv(columns, tiling.K))", "columns // tiling.K", DECODE),
    Mutant("what nobody wrote is summed", KERNELS, "jnp.where(is_here[:, :, None]", "jnp.where(True", DECODE),
    Mutant("halves of a byte exchanged", WEIGHTS, "small_float(raw & 15).as", "small_float(raw >> 4).as", CUT),
    Mutant("scales of the first group", WEIGHTS, "lax.div(block * tiling.K, each)", "0 * block", INT4),
    Mutant("zero points ignored", WEIGHTS, "(each, dtype, shift)", "(each, dtype, None)", INT4),
    Mutant("scales of the first groups", WEIGHTS, "g = block * count", "g = 0 * block * count", CUT),
    Mutant("planes one after the other", KERNELS, "lax.rem(n, 2), lax.div(n, 2)", PLANES, CUT),
    Mutant("tiles rounded down", ROUTE, "-(-jnp.diff(start) // M)", "jnp.diff(start) // M", DECODE),
    Mutant("tiles before an expert alone", ROUTE, "<= expert[:X, None]", "< expert[:X, None]", DECODE),
    Mutant(
        "expert starts after itself", ROUTE, "ids[None, :] < expert[:, None]", "ids[None, :] <= expert[:, None]", DECODE
    ),
    Mutant("equal experts in one place", ROUTE, "(pair[None, :] < pair[:, None])", "(pair[None, :] < 0)", DECODE),
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
    packed = module(package, "moe.packed").PackedExperts  # a copy has a class of its own
    args = [packed(a.values, a.scale, a.zero, a.kind) if isinstance(a, PackedExperts) else a for a in inputs.args]
    kernel = functools.partial(module(package, "moe.triton_moe").moe_triton, **inputs.static, interpret=True)
    return disagreement(kernel, KernelInputs(tuple(args), {}), expected, BY_NAME[case_name])


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, marks=[pytest.mark.slow] if "prefill" in mutant.case else [], id=mutant.id)
        for mutant in MUTANTS
    ],
)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _disagreement(mutant.plant("moe", tmp_path, monkeypatch), mutant.case) > 1


@pytest.mark.parametrize("case_name", sorted({mutant.case for mutant in MUTANTS}))
def test_without_a_bug_the_same_check_passes(case_name: str) -> None:
    assert _disagreement(pallas_kernels.__name__, case_name) <= 1
