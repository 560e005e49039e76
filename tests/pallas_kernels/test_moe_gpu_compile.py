"""The grouped products of experts compile for real GPUs on a machine that has none: no spills, no copies of experts.

Compiled, not executed: what runs is shown only by the same cases on a GPU (benchmarks/kernels.py).
"""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.moe import moe
from pallas_kernels.moe.cases import CASES, Case, silu_gate
from pallas_kernels.moe.route import COMPARED

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

BY_NAME = {case.name: case for case in CASES}
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
SHAPES = tuple(case.name for case in CASES if not case.quick)
QUICK = ("gpt_oss_20b_decode_32", "qwen3_30b_a3b_prefill_4k", "gpt_oss_20b_mxfp4_decode_32")
WIDE = Case("float32", T=512, J=4, X=16, E=1024, F=512, dtype="float32", biases=True)


def clamped_gate(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gpt-oss's."""
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)


def _compile(case: Case, kind: str) -> jax.stages.Compiled:
    place = jax.sharding.SingleDeviceSharding(gpu_topology(kind)[0])
    args = jax.tree.map(lambda arg: jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place), case.shapes().args)
    run = functools.partial(moe, activate=clamped_gate if case.biases else silu_gate, implementation="triton")
    with abstract_gpus(kind):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).compile(compiler_options=NO_SPILLS)


def _check(case: Case, kind: str) -> None:
    compiled = _compile(case, kind)
    program = compiled.as_text().split("ENTRY", 1)[1]
    assert len(re.findall(r"custom-call\(", program)) == 2, program
    assert not re.search(r" (sort|while)\(", program), program
    launches = len(re.findall(r" (?:fusion|sort|custom-call|copy|scatter|gather|while)\(", program))
    # Tokens are laid out first where two inputs share a byte; many pairs are ordered by counts of their blocks.
    laid_out, counted = case.packed in ("int4", "mxfp4"), case.T * case.J > COMPARED
    assert launches <= 8 + laid_out + 4 * counted, program  # three with JAX 0.10, four with 0.12
    made = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (?:fusion|copy|gather|transpose|convert|dynamic-slice)\(", program)
    largest = max(math.prod(map(int, shape.split(","))) for shape in made)
    pairs = case.T * case.J
    assert largest <= max(case.T * case.E, pairs * case.X, min(pairs, COMPARED) ** 2), "nothing of the size of experts"
    width = jnp.dtype(case.dtype).itemsize
    rows = (case.T * case.J * (case.E + case.F) + case.T * case.E * bool(case.packed)) * width
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.1 * rows + (1 << 20), "the rows between and after"


@pytest.mark.parametrize("kind", ["h200", "a100"])
@pytest.mark.parametrize("shape", QUICK)
def test_compiles_without_spills_and_without_a_copy_of_experts(shape: str, kind: str) -> None:
    _check(BY_NAME[shape], kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "b200", "h200", "a100"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_real_shape_compiles_for_every_gpu(shape: str, kind: str) -> None:
    _check(BY_NAME[shape], kind)


@pytest.mark.parametrize("kind", ["h200", "a100"])
@pytest.mark.parametrize("packed", ["", pytest.param("mxfp4", marks=pytest.mark.slow)])
def test_float32_compiles_without_spills(packed: str, kind: str) -> None:
    _compile(replace(WIDE, packed=packed, group=32), kind)


def test_experts_dealt_out_over_eight_gpus_need_no_collective() -> None:
    mesh = Mesh(np.array(gpu_topology("h200", 8)), ("expert",))
    whole, dealt = PartitionSpec(), PartitionSpec("expert")
    specs = (whole, whole, whole, dealt, dealt)
    shapes = BY_NAME["qwen3_30b_a3b_decode_32"].shapes().args
    args = [
        jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=NamedSharding(mesh, spec))
        for arg, spec in zip(shapes, specs, strict=True)
    ]

    def local(x: jax.Array, ids: jax.Array, weights: jax.Array, *stacks: jax.Array) -> jax.Array:
        first = jax.lax.axis_index("expert") * stacks[0].shape[0]
        return moe(x, ids - first, weights, *stacks, activate=silu_gate)[None]

    with abstract_gpus("h200", {"expert": 8}):
        spread = jax.shard_map(local, in_specs=specs, out_specs=dealt, check_vma=False)
        compiled = jax.jit(spread).trace(*args).lower(lowering_platforms=("cuda",)).compile()
    program = compiled.as_text()
    assert program.count("custom-call(") == 2
    assert not re.search(r"\ball-(reduce|gather|to-all)", program), program
