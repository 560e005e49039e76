"""The comparison with the reference catches the bugs that the search for a threshold could have."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels import KernelInputs
from pallas_kernels.sampling.cases import CASES
from pallas_kernels.sampling.reference import reference
from tests.pallas_kernels.planted_bugs import Mutant, disagreement, module

BY_NAME = {case.name: case for case in CASES}
KERNEL = "triton_threshold.py"

MUTANTS = (
    Mutant("two passes too few", KERNEL, "PASSES = 16", "PASSES = 12", "top_p_alone"),
    Mutant("elements past the end counted", KERNEL, "other=-1.0", "other=1.0", "both_odd_vocabulary"),
    Mutant(
        "last block left out", KERNEL, "blocks = -(-vocab // block_size)", "blocks = vocab // block_size", "top_k_alone"
    ),
    Mutant(
        "top-p of everything",
        KERNEL,
        "total(lambda x: jnp.where(x >= kth, x, 0.0))",
        "total(lambda x: x)",
        "both_odd_vocabulary",
    ),
    Mutant("nucleus a step too small", KERNEL, "(sums.sum(0) >= needed)", "(sums.sum(0) > needed)", "top_k_alone"),
    Mutant("top-k forgotten", KERNEL, "jnp.maximum(kth, nucleus)", "nucleus", "top_k_alone"),
    Mutant("row of another", KERNEL, "plt.load(k_ref.at[row])", "plt.load(k_ref.at[row * 0])", "both_odd_vocabulary"),
)


@functools.cache
def _expected(case_name: str) -> tuple[KernelInputs, np.ndarray]:
    inputs = BY_NAME[case_name].make(11)
    return inputs, np.asarray(jax.jit(reference)(*inputs.args))


def _disagreement(package: str, case_name: str) -> float:
    inputs, expected = _expected(case_name)
    kernel = module(package, "sampling.triton_threshold").kept_threshold_triton
    return disagreement(functools.partial(kernel, interpret=True), inputs, expected, BY_NAME[case_name])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mutant.plant("sampling", tmp_path, monkeypatch)
    assert _disagreement(package, mutant.case) > 1


@pytest.mark.parametrize("case_name", [case.name for case in CASES if case.quick])
def test_without_a_bug_the_same_check_passes(case_name: str) -> None:
    assert _disagreement("pallas_kernels", case_name) <= 1
