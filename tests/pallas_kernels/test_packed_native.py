"""Native products with packed weights: rows do not depend on each other, and every kind of CPU has its form."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.packed_matmul.cases import CASES, Case

FORMS_OF_CPUS = {"AVX2": ("avx512",), "AVX-512 without VNNI": ("avx512vnni",)}
"""By name, the beginnings of the features that such a CPU lacks."""
ELSEWHERE = """
import sys
import llvmlite.binding as llvm
import numpy as np
lacks = tuple(sys.argv[1].split(","))
whole = llvm.get_host_cpu_features()
for name in whole:
    if name.startswith(lacks):
        whole[name] = False
llvm.get_host_cpu_features = lambda: whole
from pallas_kernels.packed_matmul import native_tile, packed_matmul, reference
from pallas_kernels.packed_matmul.cases import CASES
assert not native_tile.HAS_VNNI
import functools, jax
for case in CASES:
    if case.name.startswith(tuple(sys.argv[2].split(","))):
        made = case.make(int(sys.argv[3]))
        run = jax.jit(functools.partial(packed_matmul, implementation="native", **made.static))
        expected = np.asarray(reference(*made.args, **made.static))
        np.testing.assert_allclose(np.asarray(run(*made.args)), expected, atol=case.tolerance, rtol=case.tolerance)
        print(case.name)
"""


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name.startswith(name))


@pytest.mark.parametrize("name", ["q4_1_2", "q6_k_7", "q4_0_float"])
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    made = case_of(name).make(np.random.default_rng().integers(2**31))
    x = np.random.default_rng().standard_normal((140, made.args[0].shape[1]), np.float32)
    product = jax.jit(functools.partial(packed_matmul, implementation="native", **made.static))
    whole = np.asarray(product(x, made.args[1]))
    for rows in (1, 2, 3, 7, 8, 15, 64):
        np.testing.assert_array_equal(np.asarray(product(x[-rows:], made.args[1])), whole[-rows:])


def test_a_row_that_is_not_finite_stays_so_and_harms_no_other() -> None:
    made = case_of("q4_1_2").make(1)
    x = np.array(made.args[0])
    product = jax.jit(functools.partial(packed_matmul, implementation="native", **made.static))
    before = np.asarray(product(x, made.args[1]))
    x[0, 5] = np.nan
    after = np.asarray(product(x, made.args[1]))
    assert np.isnan(after[0]).all()
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.slow
@pytest.mark.parametrize("cpu", FORMS_OF_CPUS)
def test_other_cpus_have_products_of_their_own(cpu: str) -> None:
    names = "q4_1_2,q8_0_32,q6_k_7,iq4_xs,q3_k,q4_k_float"
    command = [sys.executable, "-c", ELSEWHERE, ",".join(FORMS_OF_CPUS[cpu]), names, str(fresh_seed())]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(names.split(","))


def fresh_seed() -> int:
    return int(np.random.default_rng().integers(2**31))
