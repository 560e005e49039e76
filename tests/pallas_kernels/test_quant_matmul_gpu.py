"""Products with quantized weights compile for real GPUs on a machine that has none, and write no weight out.

Compiled, not executed: what runs is shown only by the same cases on a GPU (benchmarks/kernels.py).
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.quant_matmul import quant_matmul, triton_product
from pallas_kernels.quant_matmul.cases import Case
from pallas_kernels.quant_matmul.tiling import Tiling

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")

NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
VALUES = {"int4": (2, jnp.uint8), "int8": (1, jnp.int8), "fp8": (1, jnp.float8_e4m3fn)}

CASES = (
    Case("int4_row", 1, 6144, 4096, "int4", 128, asymmetric=True),
    Case("int4_64_rows", 64, 4096, 4096, "int4", 128, asymmetric=True),
    Case("int4_prefill", 2048, 6144, 4096, "int4", 128, asymmetric=True),
    Case("int4_act_order_8_rows", 8, 1280, 8192, "int4", 128, asymmetric=True, act_order=True),
    Case("int4_no_tile_fits", 3, 37, 160, "int4", 32, asymmetric=True, dtype="float16"),
    Case("int8_32_rows", 32, 4096, 4096, "int8"),
    Case("int8_w8a8_row", 1, 4096, 4096, "int8", activations="int8"),
    Case("fp8_blocks_row", 1, 4096, 14336, "fp8", 128),
    Case("fp8_w8a8_row", 1, 4096, 4096, "fp8", activations="fp8"),
)
LARGE = (
    Case("int4_symmetric_row", 1, 28672, 4096, "int4", 128),
    Case("int4_symmetric_prefill", 2048, 6144, 4096, "int4", 128),
    Case("int4_small_groups_prefill", 512, 6144, 4096, "int4", 32, asymmetric=True),
    Case("int4_prefill_f16", 2048, 6144, 4096, "int4", 128, asymmetric=True, dtype="float16"),
    Case("int4_prefill_f32", 256, 6144, 4096, "int4", 128, asymmetric=True, dtype="float32"),
    Case("int4_act_order_prefill", 512, 6144, 4096, "int4", 128, asymmetric=True, act_order=True),
    Case("int8_prefill", 2048, 6144, 4096, "int8"),
    Case("int8_groups_prefill", 2048, 6144, 4096, "int8", 128, asymmetric=True),
    Case("int8_w8a8_prefill", 2048, 6144, 4096, "int8", activations="int8"),
    Case("fp8_blocks_prefill", 2048, 6144, 4096, "fp8", 128),
    Case("fp8_w8a8_prefill", 2048, 6144, 4096, "fp8", activations="fp8"),
)
AMPERE_TOO = ("int4_row", "int4_64_rows", "int4_prefill", "fp8_blocks_row", "fp8_w8a8_row")
"""Those of the quick ones where the operands' way or float8 is another than on Hopper."""
slow = pytest.mark.slow


def _compile(case: Case, kind: str, implementation: str = "triton") -> jax.stages.Compiled:
    device = jax.sharding.SingleDeviceSharding(gpu_topology(kind)[0])
    per_byte, values = VALUES[case.kind]
    per_group = (case.N, case.groups)
    forms = [
        ((case.T, case.K), case.dtype),
        ((case.N, case.K // per_byte), values),
        (per_group, jnp.bfloat16),
        (per_group, jnp.int8) if case.asymmetric else None,
        ((case.K,), jnp.int32) if case.act_order else None,
    ]
    args = [None if form is None else jax.ShapeDtypeStruct(*form, sharding=device) for form in forms]
    run = functools.partial(quant_matmul, activations=case.activations, implementation=implementation)
    with abstract_gpus(kind):
        lowered = jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.compile(compiler_options=NO_SPILLS)


def _as_large_as_the_weight(compiled: jax.stages.Compiled, case: Case) -> list[str]:
    """What any part of the program makes of as many elements as the packed weight has, or more, but its result."""
    made = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* ([\w-]+)\(", compiled.as_text())
    free = {"parameter", "bitcast", "get-tuple-element", "tuple"}
    packed, sums = case.N * case.K // VALUES[case.kind][0], {case.T * case.N, case.T * case.K}
    sizes = [(math.prod(map(int, shape.split(","))), f"{dtype}[{shape}]", op) for dtype, shape, op in made]
    return [f"{op} {shape}" for size, shape, op in sizes if size >= packed and op not in free and size not in sums]


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *[pytest.param(case, "h200", id=f"{case.name}-h200") for case in CASES],
        *[pytest.param(case, "a100", id=f"{case.name}-a100") for case in CASES if case.name in AMPERE_TOO],
        *[
            pytest.param(case, "a100", id=f"{case.name}-a100", marks=slow)
            for case in CASES
            if case.name not in AMPERE_TOO
        ],
        *[
            pytest.param(case, kind, id=f"{case.name}-{kind}", marks=slow)
            for case in LARGE
            for kind in ("h200", "a100")
        ],
    ],
)
def test_compiles_without_register_spills_and_writes_no_weight_out(case: Case, kind: str) -> None:
    compiled = _compile(case, kind)
    assert len(re.findall(r"custom-call\(", compiled.as_text())) == 1
    assert not _as_large_as_the_weight(compiled, case)
    # Sums of up to 16 parts, and the rows rounded to 8 bits.
    sums = 4 * case.T * case.N * (16 if case.T <= 64 else 1)
    assert compiled.memory_analysis().temp_size_in_bytes <= sums + 2 * case.T * case.K + (1 << 16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "b200"])
@pytest.mark.parametrize("case", CASES + LARGE, ids=lambda case: case.name)
def test_compiles_for_the_other_gpus(case: Case, kind: str) -> None:
    _compile(case, kind)


def test_a_weight_that_is_written_out_is_noticed() -> None:
    compiled = _compile(CASES[0], "h200", implementation="xla")
    assert _as_large_as_the_weight(compiled, CASES[0])
    assert compiled.memory_analysis().temp_size_in_bytes >= 2 * CASES[0].N * CASES[0].K


def test_a_spilling_tile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_product, "choose_tiling", lambda *_: Tiling(128, 128, 128, num_warps=4, num_stages=3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="spilling"):
        _compile(CASES[2], "h200")


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("by_inputs", [False, True])
def test_eight_gpus_multiply_their_own_shares(by_inputs: bool, check_vma: bool) -> None:
    """Outputs shared out need no collective, inputs one sum."""
    mesh = Mesh(np.array(gpu_topology("h200", 8)), ("tp",))
    weight = PartitionSpec(None, "tp") if by_inputs else PartitionSpec("tp")
    rows = PartitionSpec(None, "tp") if by_inputs else PartitionSpec()
    forms = [((8, 8192), jnp.bfloat16, rows), ((8192, 4096), jnp.uint8, weight), ((8192, 64), jnp.bfloat16, weight)]
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec)) for shape, dtype, spec in forms]

    def local(*args: jax.Array) -> jax.Array:
        y = quant_matmul(*args)
        return jax.lax.psum(y, "tp") if by_inputs else y

    with abstract_gpus("h200", {"tp": 8}):
        outputs = PartitionSpec() if by_inputs else PartitionSpec(None, "tp")
        spread = jax.shard_map(
            local, in_specs=tuple(spec for *_, spec in forms), out_specs=outputs, check_vma=check_vma
        )
        program = jax.jit(spread).trace(*args).lower(lowering_platforms=("cuda",)).compile().as_text()
    assert len(re.findall(r"custom-call\(", program)) == 1
    actual = re.findall(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter)(?:-start)?\(", program)
    assert actual == ["all-reduce"] * by_inputs
