"""The whole step compiles for one and for eight H200s on a machine that has none, and wastes nothing.

jserve's own programs, of the shapes of Llama-3.1-8B and -70B in bfloat16, by `step_facts` in a process of its own.
Compiled, not executed: GEMM tiles, library calls and times are those of a real GPU only on one.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jserve.runtime.sampling import few_rows
from pallas_kernels.gpu_target import why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

ROOT = Path(__file__).parent.parent.parent
LAYERS = 4
MIB = 1 << 20

DECODE, MIXED = "step decode 32", "step mixed 1024x32"
SAMPLERS = [f"sample 32 {variant}" for variant in ("greedy", "draws", "draws+filters", "draws+filters+edits")]
FEW = ["few sample 32", "few logprobs 32"]
KERNELS = {DECODE: {"paged_decode_split", "paged_decode_combine"}, MIXED: {"paged_prefill"}}

STEP_BUDGET = {(DECODE, 1): 2 * MIB, (DECODE, 8): 9 * MIB, (MIXED, 1): 128 * MIB, (MIXED, 8): 52 * MIB}
"""Temporaries, near what the compiler says today: one copy of a weight (32 MiB on one GPU, 4 to 28 MiB on one
of eight) would not fit beside it, nor would gathering the logits of 32 rows (16 MiB) on each of eight.
"""


FULL_BUDGET = {
    ("llama-3.1-8b", 1): {"step decode 2": MIB, "step decode 256": 19 * MIB, "step mixed 3072x256": 210 * MIB},
    ("llama-3.1-8b", 8): {"step decode 2": 2 * MIB, "step decode 256": 17 * MIB, "step mixed 3072x256": 73 * MIB},
    ("llama-3.1-70b", 8): {"step decode 256": 17 * MIB},
}
"""Likewise of all layers, at most 256 rows and 3,072 tokens: a copy of a device's smallest weight does not fit."""


@cache
def facts(gpus: int, layers: int = LAYERS, *options: str) -> dict[str, Any]:
    """What `step_facts` says, with its programs by name."""
    command = [sys.executable, "-m", "tests.gpu_compile.step_facts", "--gpus", str(gpus), "--layers", str(layers)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    actual = json.loads(done.stdout.splitlines()[-1])
    return {**actual, "programs": {program["name"]: program for program in actual["programs"]}}


def step(gpus: int, name: str) -> dict[str, Any]:
    return facts(gpus)["programs"][name]


each_step = pytest.mark.parametrize("name", [DECODE, MIXED])
each_mesh = pytest.mark.parametrize("gpus", [1, 8])


@pytest.mark.slow
def test_arrays_that_cache_groups_share_are_written_in_place() -> None:
    """Gemma 2: two lanes for four layers, each written by a layer with a window and one without."""
    whole = facts(1, LAYERS, "--model", "gemma-2-2b", "--buckets", "32x32", "--samplers", "")
    program = whole["programs"][DECODE]
    assert program["aliased"] == whole["kv_bytes"] + whole["table_bytes"]
    assert program["page_writes"] == 2 * LAYERS
    assert program["copies"] == []
    assert program["temporaries"] < 3 * MIB


@each_mesh
@each_step
def test_pages_are_written_in_place_and_no_weight_is_copied(gpus: int, name: str) -> None:
    program, whole = step(gpus, name), facts(gpus)
    assert program["aliased"] == whole["kv_bytes"] + whole["table_bytes"]
    assert program["page_writes"] == 2 * LAYERS
    assert program["copies"] == []


@each_mesh
@each_step
def test_nothing_is_written_by_atomic_instructions_and_no_offset_wraps(gpus: int, name: str) -> None:
    program = step(gpus, name)
    assert program["atomics"] == []
    assert program["wrapping"] == []


@each_mesh
@each_step
def test_arguments_are_the_weights_and_the_state_and_little_else(gpus: int, name: str) -> None:
    program, whole = step(gpus, name), facts(gpus)
    large = whole["weight_bytes"] + whole["kv_bytes"] + whole["table_bytes"]
    assert large <= program["arguments"] < large + MIB // 4


@each_mesh
@each_step
def test_attention_is_our_kernels_and_nothing_falls_back(gpus: int, name: str) -> None:
    program = step(gpus, name)
    assert program["kernels"] == dict.fromkeys(KERNELS[name], LAYERS)
    # No other custom call: without a GPU to tune on, every product is a Triton fusion of XLA.
    assert program["custom_calls"] == {"__gpu$xla.gpu.triton": LAYERS * len(KERNELS[name])}


@each_mesh
@each_step
def test_our_kernels_spill_no_register(gpus: int, name: str) -> None:
    """That it compiled at all says so: a spill fails it. Where there is a ptxas, it says the numbers too."""
    program = step(gpus, name)
    assert all(spilled == 0 for spilled in program["spilled"].values()), program["spilled"]
    assert all(registers <= 255 for registers in program["registers"].values()), program["registers"]


@each_step
def test_one_gpu_needs_no_collective(name: str) -> None:
    assert step(1, name)["collectives"] == {}


@each_step
def test_eight_gpus_need_two_all_reduces_a_layer_and_one_more(name: str) -> None:
    """One more because the token table is split over the vocabulary: the GPU that has a token's row sends it.
    The logits go once across, from a share of the vocabulary to a share of the rows.
    """
    assert step(8, name)["collectives"] == {"all-reduce bf16": 2 * LAYERS + 1, "all-to-all f32": 1}


@each_mesh
@each_step
def test_temporaries_stay_within_their_budget_and_the_memory_plan(gpus: int, name: str) -> None:
    temporaries = step(gpus, name)["temporaries"]
    assert temporaries <= STEP_BUDGET[name, gpus]
    assert temporaries <= facts(gpus)["estimate"]


@each_step
def test_one_gpu_runs_the_step_as_one_cuda_graph(name: str) -> None:
    program = step(1, name)
    assert (program["graphs"], program["outside_graphs"]) == (1, {})


@each_mesh
@each_step
def test_a_layer_is_few_launches(gpus: int, name: str) -> None:
    """14 and the step's own; 13 where nothing is left to combine after attention. See the kernels' names in a
    thunk dump: norm, q k v, pages twice, rope, attention (2), output, sum, norm, gate up, act, down, sum.
    """
    assert step(gpus, name)["launches"] <= 14 * LAYERS + 8


@pytest.mark.parametrize("name", [*SAMPLERS, "logprobs 32"])
def test_the_sampler_shares_out_its_rows_and_gathers_only_what_was_chosen(name: str) -> None:
    alone, shared = step(1, name), step(8, name)
    assert alone["collectives"] == {}
    assert shared["collectives"] == {"all-gather s32": 1}
    assert shared["copies"] == alone["copies"] == []
    # An eighth of two arrays [S, V]; where a mask is unpacked, one more of a device's own rows may be alive.
    assert shared["temporaries"] <= alone["temporaries"] / (5 if "edits" in name else 7) + (32 << 10)


@pytest.mark.parametrize(
    ("name", "copies"),
    [("sample 32 greedy", 0), ("sample 32 draws", 0), ("logprobs 32", 0), *zip(SAMPLERS[2:], (1, 2), strict=True)],
)
def test_the_logits_are_not_written_a_second_time_where_nothing_needs_it(name: str, copies: int) -> None:
    """Filters need one array [S, V] of probabilities, in which our kernel finds the threshold; edits make another."""
    logits = 4 * 32 * 128_256
    assert step(1, name)["temporaries"] < (copies + 1 / 8) * logits


@pytest.mark.parametrize("name", FEW)
def test_a_few_rows_are_brought_together_and_nothing_else_crosses(name: str) -> None:
    alone, shared = step(1, name), step(8, name)
    assert alone["collectives"] == {}
    assert shared["collectives"] == {"all-reduce f32": 1}
    assert shared["copies"] == alone["copies"] == []
    rows = 4 * few_rows(32) * 128_256
    assert max(alone["temporaries"], shared["temporaries"]) < 8 * rows


@each_mesh
@pytest.mark.parametrize("name", [*SAMPLERS, "few sample 32"])
def test_the_sampler_keeps_its_state_in_place(gpus: int, name: str) -> None:
    is_few = name == "few sample 32"
    state = facts(gpus)["sampling_bytes"] if "edits" in name or is_few else 0
    last_token, output = 4 * 256, 4 * 32 * is_few
    assert step(gpus, name)["aliased"] == state + last_token + output
    assert step(gpus, name)["temporaries"] <= facts(gpus)["estimate"]


@each_mesh
@pytest.mark.parametrize(
    "name", [DECODE, MIXED, "sample 32 greedy", "sample 32 draws", "logprobs 32", "few logprobs 32"]
)
def test_dispatch_never_waits_for_the_device(gpus: int, name: str) -> None:
    """A loop or a branch outside a graph makes XLA's runtime wait for its condition before it goes on."""
    assert not {"While", "Conditional"} & set(step(gpus, name)["outside_graphs"])


@pytest.mark.parametrize(
    ("gpus", "bucket"),
    [(1, "32x32"), *[pytest.param(*which, marks=pytest.mark.slow) for which in ((1, "1024x32"), (8, "32x32"))]],
)
def test_weights_of_4_bits_are_read_packed_by_our_kernel(gpus: int, bucket: str) -> None:
    """The largest weight of one GPU would take 224 MiB in bfloat16. Of 1024 tokens the float32 sums with it, which
    the kernel writes and the activation reads, are 112 MiB.
    """
    layers = 2
    actual = facts(gpus, layers, "--buckets", bucket, "--samplers", "", "--quantization", "int4")
    [(name, program)] = actual["programs"].items()
    assert program["kernels"] == {"quant_matmul_int4": 4 * layers} | dict.fromkeys(KERNELS[name], layers)
    assert set(program["custom_calls"]) == {"__gpu$xla.gpu.triton"}
    assert program["copies"] == []
    assert program["temporaries"] <= (160 * MIB if name == MIXED else STEP_BUDGET[name, gpus])
    assert program["temporaries"] <= actual["estimate"]
    assert all(spilled == 0 for spilled in program["spilled"].values()), program["spilled"]
    assert program["collectives"].get("all-reduce bf16", 0) == (2 * layers + 1 if gpus > 1 else 0)
    # Three more a layer than in bfloat16: the parts of split products are summed.
    assert program["launches"] <= 17 * layers + 8


def test_the_shape_of_70b_over_eight_gpus_keeps_the_same_bounds() -> None:
    whole = facts(8, 2, "--model", "llama-3.1-70b", "--buckets", "32x32", "--samplers", "")
    program = whole["programs"][DECODE]
    assert program["collectives"] == {"all-reduce bf16": 2 * 2 + 1, "all-to-all f32": 1}
    assert program["kernels"] == dict.fromkeys(KERNELS[DECODE], 2)
    assert set(program["spilled"].values()) <= {0}
    # Two layers' sums and the logits of a share of the rows; the smallest weight of a device has 16 MiB.
    assert program["temporaries"] <= 10 * MIB
    assert_nothing_is_copied(program, whole, layers=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gpus", "layers"), [("llama-3.1-8b", 1, 32), ("llama-3.1-8b", 8, 32), ("llama-3.1-70b", 8, 80)]
)
def test_the_full_size_compiles_within_the_same_bounds(model: str, gpus: int, layers: int) -> None:
    buckets = "2x2,256x256,3072x256" if model == "llama-3.1-8b" else "256x256"
    whole = facts(gpus, layers, "--model", model, "--buckets", buckets, "--samplers", "256")
    steps = {name: program for name, program in whole["programs"].items() if name.startswith("step")}
    assert len(steps) == len(buckets.split(","))
    for name, program in whole["programs"].items():
        assert program["temporaries"] <= whole["estimate"], name
    for name, program in steps.items():
        assert program["temporaries"] <= FULL_BUDGET[model, gpus][name], name
        assert_nothing_is_copied(program, whole, layers)
        assert sum(program["kernels"].values()) in (layers, 2 * layers), name
        reduces = program["collectives"].get("all-reduce bf16", 0)
        assert reduces == (2 * layers + 1 if gpus > 1 else 0), name
        assert set(program["collectives"]) <= {"all-reduce bf16", "all-to-all f32", "all-gather f32"}, name
        assert set(program["spilled"].values()) <= {0}, name
        assert program["launches"] <= 14 * layers + 8, name
        if gpus == 1:
            assert (program["graphs"], program["outside_graphs"]) == (1, {}), name


def assert_nothing_is_copied(program: dict[str, Any], whole: dict[str, Any], layers: int) -> None:
    assert program["copies"] == [], program["name"]
    assert program["aliased"] == whole["kv_bytes"] + whole["table_bytes"], program["name"]
    assert program["page_writes"] == 2 * layers, program["name"]
