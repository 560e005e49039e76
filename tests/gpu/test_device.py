"""On a real GPU: every kernel gives its reference's values, and whole models transformers' answers.

    JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu tests/gpu

Skipped without a GPU, and where JAX_PLATFORMS (which these tests set to cpu by default) hides it. No GPU has
run this file yet; benchmarks/results will hold what the first one says.
"""

import functools
import logging
import secrets
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels import Kernel, KernelCase, discover
from tests.models.test_parity import CASES, LOGIT_TOLERANCE, PROMPTS
from tests.worlds import greedy, make_model, reference, reference_greedy, reference_logits, run, start_engine, tokens_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

SEED = secrets.randbelow(2**32)
KERNELS = {kernel.name: kernel for kernel in discover()}
FAMILIES = list(CASES)
ENGINE = {"page_size": 16, "max_num_batched_tokens": 64, "kv_cache_memory_bytes": 16 << 20}
"""Pages that the kernels support, unlike those of the CPU's tests."""


@pytest.fixture(scope="module")
def gpu() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("jax runs on no GPU here; where there is one: JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/gpu")


def test_second_start_compiles_nothing(tmp_path: Path) -> None:
    """First of all: whether a loaded program has its donations and CUDA graphs is seen nowhere else."""
    folder = make_model(tmp_path / "model", "LlamaForCausalLM")
    first = start_engine(folder, str(tmp_path / "executables"), **ENGINE)
    answers = run(first, PROMPTS, greedy(16))
    second = start_engine(folder, str(tmp_path / "executables"), **ENGINE)
    store = second.runner.table._store
    assert (store.num_compiled, store.num_loaded) == (0, len(second.runner.table.required()))
    again = run(second, PROMPTS, greedy(16))
    assert {key: tokens_of(again[key]) for key in PROMPTS} == {key: tokens_of(answers[key]) for key in PROMPTS}


def kernel_cases() -> list[object]:
    """Every implementation on every case, the large ones too."""
    return [
        pytest.param(kernel, implementation, case, id=f"{kernel.name}-{implementation}-{case.name}")
        for kernel in KERNELS.values()
        for case in kernel.cases
        for implementation in kernel.implementations
    ]


@functools.lru_cache(maxsize=2)
def expected(kernel_name: str, case: KernelCase) -> tuple[object, list[np.ndarray]]:
    """A case's inputs and what the reference makes of them on the device, in float32 where they are."""
    inputs = case.make(SEED)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(functools.partial(KERNELS[kernel_name].reference, **inputs.static))(*inputs.args)
    return inputs, leaves(out)


def leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf.astype("float32"), np.float64) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("kernel", "implementation", "case"), kernel_cases())
def test_kernel_matches_the_reference_on_the_device(kernel: Kernel, implementation: str, case: KernelCase) -> None:
    inputs, wanted = expected(kernel.name, case)
    function = functools.partial(kernel.implementations[implementation], **inputs.static)  # type: ignore[attr-defined]
    try:
        actual = leaves(jax.jit(function)(*inputs.args))  # type: ignore[attr-defined]
    except NotImplementedError as reason:
        if implementation not in ("mosaic", "native"):  # for few shapes, GPUs and versions; for CPUs
            raise
        pytest.skip(str(reason))
    for got, want in zip(actual, wanted, strict=True):
        assert np.isfinite(got).all(), f"not finite with seed {SEED}: something dead was read"
        error = float((np.abs(got - want) / np.maximum(1, np.abs(want))).max())
        assert error <= case.tolerance, f"error {error:.2g} over {case.tolerance:.2g} with seed {SEED}"


@pytest.mark.parametrize("name", FAMILIES)
def test_model_answers_as_transformers_does(
    name: str, tmp_path: Path, executables: str, caplog: pytest.LogCaptureFixture
) -> None:
    architecture, fields = CASES[name]
    folder = make_model(tmp_path, architecture, **fields)
    model = reference(folder)
    with caplog.at_level(logging.WARNING):
        deltas = run(start_engine(folder, executables, **ENGINE), PROMPTS, greedy(64, logprobs=20))
    assert "slower XLA path" not in caplog.text
    for key, prompt in PROMPTS.items():
        tokens = tokens_of(deltas[key])
        assert tokens == reference_greedy(model, prompt, 64), key
        logits = reference_logits(model, prompt + tokens)[len(prompt) - 1 : -1].astype(np.float64)
        wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        actual = [delta.logprobs[0] for delta in deltas[key] if delta.logprobs is not None]
        assert len(actual) == 64
        for each, row in zip(actual, wanted, strict=True):
            np.testing.assert_allclose(each.top_logprobs, row[each.top_ids], atol=LOGIT_TOLERANCE)


def test_answers_do_not_depend_on_the_batch(tmp_path: Path, executables: str) -> None:
    folder = make_model(tmp_path, "LlamaForCausalLM")
    core = start_engine(folder, executables, **ENGINE)
    together = run(core, PROMPTS, greedy(48))
    for key, prompt in PROMPTS.items():
        alone = run(core, {key: prompt}, greedy(48))
        assert tokens_of(alone[key]) == tokens_of(together[key])
