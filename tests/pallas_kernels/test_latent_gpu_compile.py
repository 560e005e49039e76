"""The Triton kernels of latent attention compile for real GPUs on a machine that has none, without spills.

Compiled, not executed: what runs is shown only by the same cases on a GPU (benchmarks/kernels.py).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.latent_attention import latent_attention
from pallas_kernels.latent_attention.cases import CASES, Case

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

BY_NAME = {case.name: case for case in CASES}
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
DEFAULT = ("deepseek_v2_lite_decode_8x1k", "deepseek_v3_tp8_mixed", "deepseek_v3_tp1_decode_32x1k")
"""One of each kind of tile: split over the keys with 16 rows, and 64 rows in prefill and in decode."""
SHAPES = (
    *DEFAULT,
    "deepseek_v2_lite_decode_128x1k",
    "deepseek_v3_tp1_prefill_512",
    "deepseek_v3_tp4_decode_32x1k",
    "decode_f16_h20_b16",
)


def _lower(case: Case, kind: str, dtype: str | None = None) -> jax.stages.Lowered:
    device = jax.sharding.SingleDeviceSharding(gpu_topology(kind)[0])
    inputs = jax.eval_shape(lambda: case.make(0).args) if case.quick else _abstract(case)
    args = [
        jax.ShapeDtypeStruct(a.shape, dtype if dtype and a.dtype != jnp.int32 else a.dtype, sharding=device)
        for a in inputs
    ]
    run = functools.partial(latent_attention, rank=case.rank, scale=0.1, decode=case.decode, implementation="triton")
    with abstract_gpus(kind):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",))


def _abstract(case: Case) -> list[jax.ShapeDtypeStruct]:
    """What `case.make` gives, without making it."""
    S = len(case.rows) + case.padding_rows
    T = S if case.decode else sum(row.query_len for row in case.rows) + case.padding_tokens
    P = max(-(-row.context_len // case.B) for row in case.rows)
    floats = [(T, case.H, case.rank + case.rope), (4096, 1, case.B, case.rank + case.rope)]
    integers = [(S, P), (S + 1,), (S,)]
    return [jax.ShapeDtypeStruct(shape, case.dtype) for shape in floats] + [
        jax.ShapeDtypeStruct(shape, jnp.int32) for shape in integers
    ]


def _parameters() -> list:
    marks = {name: () if name in DEFAULT else (pytest.mark.slow,) for name in SHAPES}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


SPILLS_IN_0_12 = ("deepseek_v3_tp1_decode_32x1k", "h200")
"""What the compiler of JAX 0.12 spills registers of and that of 0.10 does not; it has not been mended yet."""


@pytest.mark.parametrize("kind", ["h200", "a100"])
@pytest.mark.parametrize("shape", _parameters())
def test_compiles_without_register_spills_or_copies(shape: str, kind: str) -> None:
    if (shape, kind) == SPILLS_IN_0_12 and jax.__version_info__[:2] >= (0, 12):
        pytest.xfail("spills registers with JAX 0.12")
    program = _lower(BY_NAME[shape], kind).compile(compiler_options=NO_SPILLS).as_text().split("ENTRY", 1)[1]
    assert not re.search(r"\b(copy|transpose|scatter|gather|while|sort)\(", program), program
    assert not re.search(r"= \S+ fusion\(", program), f"XLA work around the kernel:\n{program}"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["deepseek_v2_lite_decode_8x1k", "deepseek_v2_lite_prefill_2k"])
def test_float32_compiles_without_register_spills(shape: str) -> None:
    _lower(BY_NAME[shape], "h200", "float32").compile(compiler_options=NO_SPILLS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "b200"])
@pytest.mark.parametrize("shape", DEFAULT)
def test_compiles_for_the_other_gpus(shape: str, kind: str) -> None:
    _lower(BY_NAME[shape], kind).compile()


def test_heads_split_over_eight_gpus_need_no_collective_and_no_copy_of_the_latents() -> None:
    mesh = Mesh(np.array(gpu_topology("h200", 8)), ("tp",))
    heads, whole = PartitionSpec(None, "tp"), PartitionSpec()
    S, pages = 64, (2048, 1, 64, 576)
    shapes = [((S, 128, 576), heads), (pages, whole), ((S, 32), whole), ((S + 1,), whole), ((S,), whole)]
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16 if i < 2 else jnp.int32, sharding=NamedSharding(mesh, spec))
        for i, (shape, spec) in enumerate(shapes)
    ]
    run = functools.partial(latent_attention, rank=512, scale=0.1, decode=True)
    with abstract_gpus("h200", {"tp": 8}):
        local = jax.shard_map(run, in_specs=(heads, *[whole] * 4), out_specs=heads, check_vma=False)
        compiled = jax.jit(local).trace(*args).lower(lowering_platforms=("cuda",)).compile()
    program = compiled.as_text()
    assert "custom-call(" in program
    assert not re.search(r"\ball-(reduce|gather|to-all)|copy\(", program), program
