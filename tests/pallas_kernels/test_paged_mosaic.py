"""The Mosaic GPU kernel for prefill: interpreted with races watched, compiled for Hopper, chosen only where measured.

What needs JAX 0.12 (and so Python 3.12) is skipped with an older one; how it is chosen is tested with any.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels import KernelInputs, abstract_inputs, tuning
from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.cases import CASES, Case, Row
from pallas_kernels.paged_attention.reference import reference
from pallas_kernels.paged_attention.target import Target
from tests.pallas_kernels.planted_bugs import Mutant, module

HAS_MOSAIC = jax.__version_info__[:2] >= (0, 12)
needs_mosaic = pytest.mark.skipif(not HAS_MOSAIC, reason=f"needs JAX 0.12; this is {jax.__version__}")
needs_compiler = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

BY_NAME = {case.name: case for case in CASES}
INTERPRETED = {
    case.name: case
    for case in (
        Case("long_context_reuses_places", 4, 1, 128, 64, (Row(64, 400),)),
        Case("window_sinks_g8", 8, 1, 64, 64, (Row(1, 130), Row(66, 70)), sliding_window=40, sinks=True),
        Case("soft_cap_f16_g3", 3, 1, 128, 64, (Row(65, 100),), "float16", soft_cap=5.0, padding_tokens=1),
        Case("one_head_b128", 1, 1, 64, 128, (Row(67, 200),), padding_rows=1),
    )
}
REAL = ("llama3_8b_prefill_2k", "llama3_8b_mixed", "qwen3_0_6b_prefill_2k", "gpt_oss_20b_prefill_window")


def _interpret(package: str, inputs: KernelInputs) -> tuple[np.ndarray, bool]:
    """What a package's kernel gives, and whether two of its threads raced."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    kernel = module(package, "paged_attention.mosaic_prefill").paged_attention_prefill
    static = {name: value for name, value in inputs.static.items() if name != "decode"}
    got = jax.jit(functools.partial(kernel, **static, interpret=True))(*inputs.args)
    return np.asarray(got.astype("float32")), interpret_pallas_call.get_races().races_found


def _error(got: np.ndarray, inputs: KernelInputs, case: Case) -> float:
    """The largest, as a multiple of what the case tolerates."""
    expected = jax.jit(functools.partial(reference, **inputs.static))(*inputs.args)
    wanted = np.asarray(expected.astype("float32"))
    error = np.abs(got - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.nan_to_num(error, nan=np.inf).max() / case.tolerance)


@needs_mosaic
@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_kernel_matches_the_reference_and_nothing_races(name: str) -> None:
    case = INTERPRETED[name]
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    inputs = case.make(seed)
    got, raced = _interpret("pallas_kernels", inputs)
    assert _error(got, inputs, case) <= 1, f"with seed {seed}"
    assert not raced


MUTANTS = tuple(
    Mutant(bug, "mosaic_prefill.py", old, new, case)
    for bug, old, new, case in (
        ("query sees the next token", "seen = key <= at", "seen = key <= at + 1", "soft_cap_f16_g3"),
        ("window one too wide", "seen &= key > at -", "seen &= key >= at -", "window_sinks_g8"),
        ("dead values kept", "jnp.where(row < live,", "jnp.where(row <= live,", "soft_cap_f16_g3"),
        ("sink of another head", "row >= g * launch.W", "row >= g", "window_sinks_g8"),
    )
)


@needs_mosaic
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_planted_bug_is_caught(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mutant.plant("paged_attention", tmp_path, monkeypatch)
    case = INTERPRETED[mutant.case]
    inputs = case.make(11)
    got, raced = _interpret(package, inputs)
    assert raced or _error(got, inputs, case) > 1


def _compile(case: Case, implementation: str) -> jax.stages.Compiled:
    inputs = abstract_inputs(case)
    device = jax.sharding.SingleDeviceSharding(gpu_topology("h200")[0])
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), inputs.args)
    run = functools.partial(paged_attention, **inputs.static, implementation=implementation)
    with abstract_gpus("h200"):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).compile()


@needs_mosaic
@needs_compiler
@pytest.mark.parametrize("name", REAL)
def test_compiles_for_hopper_without_spills(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    program = _compile(BY_NAME[name], "mosaic").as_text()
    told = "".join(capfd.readouterr())
    assert "paged_prefill_mosaic" in told
    assert "for 'sm_90a'" in told
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
    assert "mosaic_gpu" in program
    assert "__gpu$xla.gpu.triton" not in program


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning.read_table.cache_clear()
    yield tuning.table_path("NVIDIA H200")
    tuning.read_table.cache_clear()


def _traced(case: Case, kind: str = "h200", implementation: str = "auto") -> str:
    inputs = abstract_inputs(case)
    with abstract_gpus(kind):
        run = functools.partial(paged_attention, **inputs.static, implementation=implementation)
        return str(jax.make_jaxpr(run)(*inputs.args))


def test_without_a_measurement_triton_is_chosen(table: Path) -> None:
    assert "paged_prefill_mosaic" not in _traced(BY_NAME["llama3_8b_prefill_2k"])


@pytest.mark.parametrize(("name", "kind"), [("llama3_8b_prefill_2k", "h200"), ("qwen3_0_6b_prefill_2k", "h200")])
def test_a_table_that_has_the_kernel_for_these_heads_chooses_it_where_jax_can(
    table: Path, name: str, kind: str
) -> None:
    table.write_text("device = 'NVIDIA H200'\n[paged_prefill_mosaic.'bfloat16 G4 D128 B64']\nnum_stages = 3\n")
    chosen = "paged_prefill_mosaic" in _traced(BY_NAME[name], kind)
    assert chosen == (HAS_MOSAIC and name == "llama3_8b_prefill_2k")


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (BY_NAME["llama3_8b_decode_8x1k"], "decode is Triton's"),
        (BY_NAME["llama3_8b_int8_prefill_2k"], "all bfloat16 or all float16"),
        (BY_NAME["gemma2_2b_prefill_window"], "head dims"),
        (Case("large_group", 16, 1, 64, 64, (Row(64, 64),)), "8 query heads"),
        (Case("short", 4, 1, 64, 64, (Row(9, 64),)), "at least 64 tokens"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_it_cannot_run_is_refused_by_name(case: Case, told: str) -> None:
    with pytest.raises(NotImplementedError, match=told if HAS_MOSAIC or case.decode else "needs JAX 0.12"):
        _traced(case, implementation="mosaic")


@pytest.mark.parametrize("kind", ["a100", "b200"])
def test_other_gpus_than_hopper_are_refused(kind: str) -> None:
    with abstract_gpus(kind):
        capability = Target.current().capability
    with pytest.raises(NotImplementedError, match=f"got \\({capability[0]}" if HAS_MOSAIC else "needs JAX 0.12"):
        _traced(BY_NAME["llama3_8b_prefill_2k"], kind, "mosaic")
