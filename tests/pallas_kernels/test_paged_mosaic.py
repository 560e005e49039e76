"""The Mosaic GPU kernels: interpreted with races watched, compiled for Hopper, chosen only where measured.

Compiling them needs JAX 0.11 and interpreting them 0.12 (and so Python 3.12): skipped with an older one. How they are
chosen is tested with any.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels import abstract_inputs, tuning
from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.cases import CASES, Case, Row
from pallas_kernels.paged_attention.mosaic_support import CHOSEN_WITH_JAX, DECODE, NEEDS_JAX, PREFILL, Kind
from pallas_kernels.paged_attention.target import Target
from tests.pallas_kernels.mosaic_interpreter import INTERPRETED, interpret

HAS_MOSAIC = jax.__version_info__[:2] >= NEEDS_JAX
IS_CHOSEN = jax.__version_info__[:2] >= CHOSEN_WITH_JAX
needs_mosaic = pytest.mark.skipif(not HAS_MOSAIC, reason=f"needs JAX 0.11; this is {jax.__version__}")
# The interpreter of 0.11 wants the last phase of each barrier waited for, which a GPU does not.
needs_interpreter = pytest.mark.skipif(not IS_CHOSEN, reason=f"needs JAX 0.12; this is {jax.__version__}")
needs_compiler = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

BY_NAME = {case.name: case for case in CASES}
REAL = (
    "llama3_8b_decode_32x1k",
    "smollm2_135m_decode_32x1k",
    "gpt_oss_20b_decode_32x1k",
    "llama3_8b_prefill_2k",
    "llama3_8b_mixed",
    "qwen3_0_6b_prefill_2k",
    "gpt_oss_20b_prefill_window",
)


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_kernel_matches_the_reference_and_nothing_races(name: str) -> None:
    case = INTERPRETED[name]
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    outcome = interpret("pallas_kernels", case.make(seed), case)
    assert not outcome.caught, f"with seed {seed}: {outcome}"


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
    reported = "".join(capfd.readouterr())
    assert (DECODE if BY_NAME[name].decode else PREFILL).table in reported
    assert "for 'sm_90a'" in reported
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in reported
    assert "mosaic_gpu" in program
    # Parts of decode are combined by the kernel that combines those of Triton's.
    assert program.count("__gpu$xla.gpu.triton") == BY_NAME[name].decode


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
    assert "mosaic" not in _traced(BY_NAME["llama3_8b_prefill_2k"])
    assert "mosaic" not in _traced(BY_NAME["llama3_8b_decode_32x1k"])


@pytest.mark.parametrize("kind", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_a_table_that_has_the_kernel_for_these_heads_chooses_it_where_jax_can(table: Path, kind: Kind) -> None:
    table.write_text(f"device = 'NVIDIA H200'\n[{kind.table}.'bfloat16 G4 D128 B64']\nnum_stages = 2\n")
    shape = "decode_32x1k" if kind is DECODE else "prefill_2k"
    assert (kind.table in _traced(BY_NAME[f"llama3_8b_{shape}"])) == IS_CHOSEN
    assert kind.table not in _traced(BY_NAME[f"qwen3_0_6b_{shape}"])
    assert "mosaic" not in _traced(BY_NAME["llama3_8b_prefill_2k" if kind is DECODE else "llama3_8b_decode_32x1k"])


@pytest.mark.parametrize(
    ("case", "reported"),
    [
        (BY_NAME["llama3_8b_int8_decode_8x1k"], "all bfloat16 or all float16"),
        (BY_NAME["mistral_7b_page16_decode_32x1k"], "page sizes"),
        (BY_NAME["llama3_8b_int8_prefill_2k"], "all bfloat16 or all float16"),
        (BY_NAME["gemma2_2b_prefill_window"], "head dims"),
        (Case("large_group", 16, 1, 64, 64, (Row(64, 64),)), "8 query heads"),
        (Case("short", 4, 1, 64, 64, (Row(9, 64),)), "at least 64 tokens"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_it_cannot_run_is_refused_by_name(case: Case, reported: str) -> None:
    with pytest.raises(NotImplementedError, match=reported if HAS_MOSAIC else "needs JAX 0.11"):
        _traced(case, implementation="mosaic")


@pytest.mark.parametrize("kind", ["a100", "b200"])
def test_other_gpus_than_hopper_are_refused(kind: str) -> None:
    with abstract_gpus(kind):
        capability = Target.current().capability
    with pytest.raises(NotImplementedError, match=f"got \\({capability[0]}" if HAS_MOSAIC else "needs JAX 0.11"):
        _traced(BY_NAME["llama3_8b_prefill_2k"], kind, "mosaic")
