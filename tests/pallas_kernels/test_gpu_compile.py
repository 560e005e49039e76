"""The Triton kernels compile for real GPUs on a machine that has none: no spills, no copies, few launches.

Compiled, not executed: what runs is shown only by the same cases on a GPU (benchmarks/kernels.py).
"""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.paged_attention import paged_attention, triton_prefill
from pallas_kernels.paged_attention.cases import CASES, Case
from pallas_kernels.paged_attention.triton_tile import Tiling

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

BY_NAME = {case.name: case for case in CASES}
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}

SHAPES = (
    "llama3_8b_decode_8x1k",
    "llama3_8b_decode_128x1k",
    "llama3_8b_mixed",
    "qwen2_7b_decode_32x1k",
    "smollm2_135m_decode_32x1k",
    "smollm2_135m_prefill_2k",
    "phi3_mini_mha_d96_decode_32x1k",
    "gemma2_2b_decode_window",
    "gemma2_2b_prefill_window",
    "gpt_oss_20b_decode_32x1k",
    "gpt_oss_20b_prefill_window",
    "llama3_8b_int8_decode_8x1k",
    "llama3_8b_fp8_prefill_2k",
    "mistral_7b_page16_decode_32x1k",
)


def _lower(case: Case, kind: str) -> jax.stages.Lowered:
    device = jax.sharding.SingleDeviceSharding(gpu_topology(kind)[0])
    S = len(case.rows) + case.padding_rows
    T = S if case.decode else sum(row.query_len for row in case.rows) + case.padding_tokens
    P = max(-(-row.context_len // case.B) for row in case.rows)
    held = {"int8": "int8", "fp8": "uint8", None: case.dtype}[case.kv]
    scales = 0 if case.kv is None else 2
    shapes = [
        ((T, case.H, case.D), case.dtype),
        *[((4096, case.K, case.B, case.D), held)] * 2,
        *[(shape, "int32") for shape in ((S, P), (S + 1,), (S,))],
        ((case.H,), case.dtype) if case.sinks else None,
        *[((4096, case.K, case.B, 1), "float32")] * scales,
    ]
    args = [shape and jax.ShapeDtypeStruct(*shape, sharding=device) for shape in shapes]
    run = functools.partial(
        paged_attention,
        scale=0.1,
        sliding_window=case.sliding_window,
        soft_cap=case.soft_cap,
        decode=case.decode,
        implementation="triton",
    )
    with abstract_gpus(kind):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",))


def _entry(compiled: jax.stages.Compiled) -> str:
    return compiled.as_text().split("ENTRY", 1)[1]


@pytest.mark.parametrize("kind", ["h200", "a100"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_without_register_spills_or_copies(shape: str, kind: str):
    program = _entry(_lower(BY_NAME[shape], kind).compile(compiler_options=NO_SPILLS))
    assert not re.search(r"\b(copy|transpose|scatter|gather|while|sort)\(", program), program
    assert not re.search(r"= \S+ fusion\(", program), f"XLA work around the kernel:\n{program}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "b200"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_for_the_other_gpus(shape: str, kind: str):
    _lower(BY_NAME[shape], kind).compile(compiler_options=NO_SPILLS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h200", "a100"])
@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("shape", ["llama3_8b_decode_8x1k", "llama3_8b_decode_128x1k", "llama3_8b_prefill_2k"])
@pytest.mark.parametrize(
    "change",
    [
        {"D": 64, "B": 16, "sinks": True, "sliding_window": 128},
        {"D": 80, "B": 32},
        {"D": 96, "B": 128},
        {"D": 128},
        {"D": 192, "B": 16},
        {"D": 256, "H": 8, "K": 4, "sliding_window": 4096, "soft_cap": 50.0},
    ],
    ids=lambda change: f"d{change['D']}_b{change.get('B', 64)}",
)
def test_keys_and_values_of_8_bits_compile_without_spills_at_any_width(change, shape: str, kv: str, kind: str):
    _lower(replace(BY_NAME[shape], kv=kv, **change), kind).compile(compiler_options=NO_SPILLS)


@pytest.mark.parametrize(
    ("shape", "launches"),
    [("llama3_8b_decode_8x1k", 2), ("llama3_8b_decode_128x1k", 1), ("llama3_8b_mixed", 1)],
)
def test_number_of_kernel_launches(shape: str, launches: int):
    program = _entry(_lower(BY_NAME[shape], "h200").compile())
    assert len(re.findall(r"custom-call\(", program)) == launches, program


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("decode", [False, True])
def test_heads_split_over_eight_gpus_need_no_collective(decode: bool, check_vma: bool):
    mesh = Mesh(np.array(gpu_topology("h200", 8)), ("tp",))
    heads, whole = PartitionSpec(None, "tp"), PartitionSpec()
    S, pages = 64, (2048, 8, 64, 128)
    shapes = [(S if decode else 512, 32, 128), pages, pages, (S, 32), (S + 1,), (S,)]
    args = [
        jax.ShapeDtypeStruct(
            shape,
            jnp.bfloat16 if i < 3 else jnp.int32,
            sharding=NamedSharding(mesh, heads if i < 3 else whole),
        )
        for i, shape in enumerate(shapes)
    ]
    run = functools.partial(paged_attention, scale=0.1, decode=decode)
    with abstract_gpus("h200", {"tp": 8}):
        local = jax.shard_map(run, in_specs=(heads,) * 3 + (whole,) * 3, out_specs=heads, check_vma=check_vma)
        compiled = jax.jit(local).trace(*args).lower(lowering_platforms=("cuda",)).compile()
    program = compiled.as_text()
    assert "custom-call(" in program
    assert not re.search(r"\ball-(reduce|gather|to-all)", program), program


def test_pool_of_more_than_4_gib_compiles():
    # Addresses past 2^31 elements need 64-bit offsets, another path of the compiler.
    case = replace(BY_NAME["llama3_8b_decode_8x1k"], B=128, D=256, K=32)
    assert 4096 * case.K * case.B * case.D * 2 > 2**32
    _lower(case, "h200").compile(compiler_options=NO_SPILLS)


def test_a_spilling_tile_is_noticed(monkeypatch):
    monkeypatch.setattr(triton_prefill, "choose_tiling", lambda *_: Tiling(128, 64, num_warps=4, num_stages=3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="spilling"):
        _lower(BY_NAME["llama3_8b_mixed"], "h200").compile(compiler_options=NO_SPILLS)


def test_unknown_gpu_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'h300'; choose one of a100, h100, h200, b200"):
        gpu_topology("h300")
