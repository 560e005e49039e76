"""Every implementation of every kernel folder gives what its reference gives, on inputs fresh in each run."""

import ast
import functools
import re
import secrets
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_kernels
from pallas_kernels import IncompleteKernelError, Kernel, KernelCase, abstract_inputs, discover

SEED = secrets.randbelow(2**32)
KERNELS = {kernel.name: kernel for kernel in discover()}
GPU_ONLY = ("triton", "mosaic")
GPU_MODULES = [
    path
    for path in sorted(Path(pallas_kernels.__file__).parent.glob("*/*.py"))
    if "pl.pallas_call" in path.read_text() or "plgpu.kernel" in path.read_text()
]
MOST_INTERPRETED = 7e10
"""Operations of a case that the interpreter on a CPU is still asked for, which take it a minute or two."""

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
"""How references, and what the interpreter runs, are compiled: a second to optimize, milliseconds to run if quick."""


def _parameters() -> list:
    return [
        pytest.param(
            kernel.name,
            implementation,
            i,
            id=f"{kernel.name}-{implementation}-{case.name}",
            marks=() if case.quick else _marks_of_large(implementation, case),
        )
        for kernel in KERNELS.values()
        for i, case in enumerate(kernel.cases)
        for implementation in kernel.implementations  # innermost: they share what is expected
    ]


def _marks_of_large(implementation: str, case: KernelCase) -> tuple[pytest.MarkDecorator, ...]:
    endless = implementation in GPU_ONLY and case.flops > MOST_INTERPRETED
    return pytest.mark.slow, pytest.mark.skipif(
        endless and jax.default_backend() == "cpu", reason="more than the interpreter does in some minutes"
    )


@functools.lru_cache(maxsize=1)
def _expected(kernel_name: str, case: KernelCase) -> tuple:
    inputs = case.make(SEED)
    reference = functools.partial(KERNELS[kernel_name].reference, **inputs.static)
    run = jax.jit(reference).lower(*inputs.args).compile(UNOPTIMIZED if case.quick else None)
    return inputs, jax.tree.map(_float64, run(*inputs.args))


def _float64(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype("float32"), np.float64)


def _run(kernel: Kernel, implementation: str, case: KernelCase, inputs) -> object:
    function = functools.partial(kernel.implementations[implementation], **inputs.static)
    is_interpreted = implementation in GPU_ONLY and jax.default_backend() == "cpu"
    options = UNOPTIMIZED if is_interpreted and case.quick else None
    run = jax.jit(function).lower(*inputs.args).compile(options)
    return jax.tree.map(_float64, run(*inputs.args))


@pytest.mark.parametrize(("kernel_name", "implementation", "index"), _parameters())
def test_implementation_matches_the_reference(kernel_name, implementation, index):
    kernel = KERNELS[kernel_name]
    case = kernel.cases[index]
    if implementation in ("mosaic", "native"):
        _skip_unless_supported(kernel, implementation, case)
    inputs, expected = _expected(kernel_name, case)
    got = _run(kernel, implementation, case, inputs)
    jax.tree.map(lambda a, b: _assert_close(a, b, case.tolerance), got, expected)


def _skip_unless_supported(kernel: Kernel, implementation: str, case: KernelCase) -> None:
    """Mosaic kernels take few shapes, and a JAX that not every Python has; native ones want multiples of 16."""
    inputs = abstract_inputs(case)
    try:
        jax.eval_shape(functools.partial(kernel.implementations[implementation], **inputs.static), *inputs.args)
    except NotImplementedError as reason:
        pytest.skip(str(reason))


def _assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all(), f"not finite with seed {SEED}: something dead was read"
    error = (np.abs(got - expected) / np.maximum(1, np.abs(expected))).max()
    assert error <= tolerance, f"error {error:.2g} over {tolerance:.2g} with seed {SEED}"


def test_the_interpreter_poisons_what_a_kernel_does_not_write():
    """So that an output, or a part of one, that a kernel leaves out is not finite, or far off, in the test above."""

    def writes_half(out):
        out[:4] = jax.numpy.ones((4,), out.dtype)

    for dtype in ("float32", "bfloat16"):
        got = _float64(pl.pallas_call(writes_half, out_shape=jax.ShapeDtypeStruct((8,), dtype), interpret=True)())
        assert (got[:4] == 1).all()
        assert np.isnan(got[4:]).all()


@pytest.mark.parametrize("missing", ["reference.py", "cases.py", "implementations"])
def test_a_kernel_folder_that_lacks_a_part_is_refused(tmp_path: Path, monkeypatch, missing):
    folder = tmp_path / f"kernel_without_{missing.removesuffix('.py')}"
    folder.mkdir()
    parts = {
        "__init__.py": "" if missing == "implementations" else "IMPLEMENTATIONS = {'xla': print}",
        "reference.py": "reference = print",
        "cases.py": "CASES = ('one',)",
    }
    for name, source in parts.items():
        if name != missing:
            (folder / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(IncompleteKernelError, match=r"every kernel needs"):
        discover(tmp_path, package="")


def test_a_kernel_without_cases_to_run_is_refused(tmp_path: Path, monkeypatch):
    folder = tmp_path / "kernel_with_empty_cases"
    folder.mkdir()
    (folder / "__init__.py").write_text("IMPLEMENTATIONS = {'xla': print}")
    (folder / "reference.py").write_text("reference = print")
    (folder / "cases.py").write_text("CASES = ()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(IncompleteKernelError, match="empty"):
        discover(tmp_path, package="")


def test_shapes_of_a_case_are_those_of_what_it_makes():
    for kernel in KERNELS.values():
        for case in (case for case in kernel.cases if case.quick):
            made, shapes = case.make(SEED), abstract_inputs(case)
            assert made.static == shapes.static
            of_made = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.args)
            assert of_made == shapes.args, f"{kernel.name} {case.name}"


@pytest.mark.parametrize("path", GPU_MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_gpu_kernel_says_where_it_was_compiled_interpreted_and_executed(path: Path):
    """In its first words: for which targets, and on which machine and day, or that it never was."""
    opening = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    compiled = re.search(r"[Cc]ompiled for ((?:sm_\d+a?(?:, | and )?)+)", opening)
    assert compiled, opening
    assert set(re.findall(r"sm_\w+", compiled[1])) <= {"sm_80", "sm_90a", "sm_100a"}
    assert "interpreted" in opening
    assert re.search(r"never executed on a GPU|executed on (an? )?NVIDIA [\w ]+ \(\d{4}-\d\d-\d\d\)", opening), opening


def test_every_kernel_has_a_quick_case():
    assert KERNELS
    for kernel in KERNELS.values():
        assert any(case.quick for case in kernel.cases), kernel.name
