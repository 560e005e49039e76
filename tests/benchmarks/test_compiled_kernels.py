"""The committed table of compiled kernels is whole and says no spill, and its readers see what the compiler does."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.compiled_kernels import RESULTS, TARGETS, chosen, markdown
from benchmarks.kernel_resources import (
    Launch,
    Occupancy,
    Resources,
    find_ptxas,
    launches,
    mosaic_launch,
    occupancy,
    read_ptxas,
)
from pallas_kernels import discover
from pallas_kernels.gpu_target import GPUS, abstract_gpus, why_unavailable
from pallas_kernels.paged_attention import mosaic_support
from pallas_kernels.paged_attention.target import Target

ROOT = Path(__file__).parent.parent.parent
# Bytes. ptxas gives this launch, whose grid has one KV head, 96 registers; its like with more heads have 128.
KNOWN_SPILLS = {("llama3_8b_tp8_decode_64x2k", "paged_decode_split", "a100"): 16}
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 44 registers, used 0 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    96 bytes stack frame, 120 bytes spill stores, 88 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 96 bytes cumulative stack size, 2048 bytes smem
"""
THUNKS = """001: kCommandBuffer [source | sink]
    001: kCustomKernel [source | next=002 (1)] first grid: [6, 8, 8] threads: [128, 1, 1]  shared_memory: 71680 bytes
002: kAllReduce [source | sink]
003: kCustomKernel [source | sink] second_1 grid: [32, 8, 1] threads: [16, 2, 1]  shared_memory: 0 bytes
"""
MOSAIC = """module @prefill attributes {mosaic_gpu.arch_major = 9 : i32} {
  func.func private @mosaic_gpu_init_tma_desc(!llvm.ptr, i64)
  func.func @prefill_mosaic_gpu(%arg0: !llvm.ptr, %arg1: !llvm.ptr) attributes {llvm.emit_c_interface} {
    %75 = gpu.launch async [%3] blocks(%arg2, %arg3, %arg4) in (%arg8 = %c8, %arg9 = %c66, %arg10 = %c1_0)\
 threads(%arg5, %arg6, %arg7) in (%arg11 = %c384, %arg12 = %c1, %arg13 = %c1) dynamic_shared_memory_size %c198808_i32 {
"""


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def test_every_real_case_of_every_triton_kernel_is_in_the_table_for_every_gpu(committed: dict[str, Any]) -> None:
    listed = {(each["kernel"], each["case"], each["gpu"]) for each in (*committed["rows"], *committed["refused"])}
    wanted = {(kernel.name, case.name, gpu) for kernel, case in chosen("") for gpu in TARGETS}
    assert listed == wanted, "run `python -m benchmarks.compiled_kernels`"


def test_every_triton_kernel_has_rows_for_every_gpu(committed: dict[str, Any]) -> None:
    for kernel in (kernel for kernel in discover() if "triton" in kernel.implementations):
        assert {row["gpu"] for row in committed["rows"] if row["kernel"] == kernel.name} == set(TARGETS), kernel.name


def test_no_kernel_of_the_table_spills_but_what_is_known_and_all_fit_their_gpu(committed: dict[str, Any]) -> None:
    assert not [each for each in committed["refused"] if each["is_fault"]]
    for row in (*committed["rows"], *committed["mosaic"]["rows"]):
        known = KNOWN_SPILLS.get((row["case"], row["launch"], row["gpu"]), 0)
        assert (row["spilled"], row["local_memory"] > 0) == (known, known > 0), row
        assert row["shared_memory"] <= GPUS[row["gpu"]].shared_memory, row
        assert row["blocks_per_core"] >= 1, row


def test_every_real_case_that_mosaic_takes_is_in_the_table_for_hopper(committed: dict[str, Any]) -> None:
    """Which those are is asked of the kernel itself, as if this JAX had it."""
    wanted = set()
    with patch.object(mosaic_support, "NEEDS_JAX", (0, 0)), abstract_gpus("h200"):
        for _, case in chosen("", "mosaic"):
            q, k_pages, v_pages, *_ = case.shapes().args
            scaled = k_pages.dtype != q.dtype
            with contextlib.suppress(NotImplementedError):
                mosaic_support.check_support(q, k_pages, v_pages, scaled, Target.current())
                wanted |= set() if case.decode else {case.name}
    assert len(wanted) >= 7
    listed = [(row["case"], row["gpu"]) for row in committed["mosaic"]["rows"]]
    assert sorted(listed) == sorted((name, "h200") for name in wanted), "run it with --implementation mosaic"


def test_table_for_a_person_says_what_the_json_says(committed: dict[str, Any]) -> None:
    assert RESULTS.with_suffix(".md").read_text() == markdown(committed)


def test_a_spill_stands_out_in_the_table(committed: dict[str, Any]) -> None:
    assert markdown(committed).count(" spilled**") == len(KNOWN_SPILLS)
    assert "**8 spilled**" in markdown({**committed, "rows": [{**committed["rows"][0], "spilled": 8}]})


def test_ptxas_and_thunks_are_read_kernel_by_kernel() -> None:
    assert read_ptxas(PTXAS) == {"first": Resources(44, 0, 0, 0), "second": Resources(255, 2048, 96, 208)}
    assert launches(THUNKS) == [Launch("first", (6, 8, 8), 128, 71680), Launch("second_1", (32, 8, 1), 32, 0)]
    with pytest.raises(ValueError, match="words that are new"):
        read_ptxas("Compiling entry function 'third' for 'sm_120': uses 12 registers")


def test_a_launch_of_mosaic_is_read_from_its_dump() -> None:
    assert mosaic_launch(MOSAIC) == Launch("prefill_mosaic_gpu_kernel", (8, 66, 1), 384, 198808)
    with pytest.raises(ValueError, match="words that are new"):
        mosaic_launch(MOSAIC.replace("dynamic_shared_memory_size", "dynamic"))


@pytest.mark.parametrize(
    ("gpu", "threads", "registers", "shared", "blocks", "limited_by"),
    [
        ("h200", 128, 104, 71_680, 3, "shared memory"),  # 3 x 71 KiB of 228
        ("a100", 128, 92, 71_680, 2, "shared memory"),  # 2 x 71 KiB of 164
        ("h200", 256, 255, 0, 1, "registers"),  # two warps of 8,192 registers on each quarter of 16,384
        ("h200", 128, 104, 0, 4, "registers"),  # four warps of 3,328 on each quarter
        ("h200", 256, 32, 0, 8, "warps"),
        ("b200", 32, 32, 0, 32, "blocks"),
    ],
)
def test_blocks_on_a_core(gpu: str, threads: int, registers: int, shared: int, blocks: int, limited_by: str) -> None:
    assert occupancy(GPUS[gpu], threads, Resources(registers, 0, 0, 0), shared) == Occupancy(blocks, limited_by)


TODAY = """
import dataclasses, json, os, sys
from pathlib import Path
from benchmarks.compiled_kernels import Compiler, chosen, is_sound
from benchmarks.kernel_resources import dump_flags, find_ptxas, ptxas_version
os.environ["XLA_FLAGS"] = dump_flags(sys.argv[1])
from pallas_kernels.paged_attention import triton_prefill
from pallas_kernels.paged_attention.triton_tile import Tiling
import jax
compiler = Compiler(find_ptxas(), Path(sys.argv[1]))
[(kernel, case)] = chosen("llama3_8b_mixed")
good = list(compiler.rows(kernel, case, "h200"))
triton_prefill.choose_tiling = lambda *_: Tiling(128, 64, num_warps=4, num_stages=3)
spilling = list(compiler.rows(kernel, case, "h200"))
assert is_sound(good) and not is_sound(spilling), spilling
rows = [dataclasses.asdict(row) for row in (*good, *spilling)]
print(json.dumps({"jax": jax.__version__, "ptxas": ptxas_version(find_ptxas()), "rows": rows}))
"""


@pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")
@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: of the CUDA toolkit or nvidia-cuda-nvcc-cu12")
def test_one_case_compiles_today_as_the_table_says_and_a_spilling_tile_is_seen(
    committed: dict[str, Any], tmp_path: Path
) -> None:
    """XLA itself refuses the same tile for spilling: tests/pallas_kernels/test_gpu_compile.py."""
    done = subprocess.run(
        [sys.executable, "-c", TODAY, str(tmp_path / "dump")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    today = json.loads(done.stdout)
    good, spilling = today["rows"]
    [listed] = [e for e in committed["rows"] if (e["case"], e["gpu"]) == ("llama3_8b_mixed", "h200")]
    assert (good["launch"], good["grid"], good["warps"]) == (listed["launch"], listed["grid"], listed["warps"])
    if (today["jax"], today["ptxas"]) == (committed["jax"], committed["ptxas"]):
        assert good == listed, "run `python -m benchmarks.compiled_kernels`"
    assert spilling["spilled"] > 0
    assert spilling["local_memory"] > 0
