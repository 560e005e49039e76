"""Products with quantized weights: the choice of an implementation, of tiles and splits, and what may not change."""

import logging
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.quant_matmul as op
from pallas_kernels.gpu_target import GPUS, abstract_gpus
from pallas_kernels.paged_attention.target import H200, Target
from pallas_kernels.quant_matmul.cases import CASES, Case
from pallas_kernels.quant_matmul.reference import reference
from pallas_kernels.quant_matmul.tiling import Product, choose_splits, choose_tiling
from pallas_kernels.quant_matmul.triton_product import quant_matmul_triton
from pallas_kernels.quant_matmul.triton_weight import widen_fp8

INT4 = Case("int4", 3, 40, 256, "int4", group=64, asymmetric=True, dtype="float32")
AMPERE = Target("gpu", 108, (8, 0))
DTYPES = {"float": jnp.bfloat16, "int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


def _product(case: Case) -> Product:
    dtype = jnp.dtype(case.dtype if case.activations == "float" else DTYPES[case.activations])
    return Product(case.T, case.N, case.K, case.groups, case.kind, dtype, case.act_order)


@pytest.mark.parametrize("splits", [1, 3, 50])
def test_any_number_of_splits_gives_the_reference(splits: int) -> None:
    inputs = INT4.make(5)
    got = quant_matmul_triton(*inputs.args, splits=splits, interpret=True)
    np.testing.assert_allclose(got, reference(*inputs.args), atol=INT4.tolerance)


def test_a_row_sees_nothing_of_its_neighbours() -> None:
    x, *weight = INT4.make(6).args
    poisoned = np.concatenate([np.full_like(x[:1], np.nan), x, np.full_like(x[:1], np.inf)])
    alone, among = (quant_matmul_triton(rows, *weight, splits=2, interpret=True) for rows in (x, poisoned))
    assert np.array_equal(alone, among[1:-1])


def test_every_float8_is_widened_exactly_without_the_devices_help() -> None:
    codes = jax.lax.bitcast_convert_type(jnp.arange(256, dtype=jnp.uint8), jnp.float8_e4m3fn)
    numbers = np.asarray(codes.astype(jnp.float32))
    finite = np.isfinite(numbers)  # the format has two NaN
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        widened = np.asarray(widen_fp8(codes, jnp.dtype(dtype)).astype(jnp.float32))
        assert np.array_equal(widened[finite], numbers[finite])


def test_one_row_keeps_every_multiprocessor_busy() -> None:
    for target in (H200, AMPERE):
        for case in CASES:
            if case.T == 1 and not case.quick:
                product = _product(case)
                tiling = choose_tiling(product, target)
                programs = -(-case.N // tiling.outputs) * choose_splits(product, tiling, target)
                assert programs >= target.num_cores, f"{case.name}: {programs} programs"


def test_prefill_that_fills_the_gpu_twice_is_not_split_and_shares_of_the_inputs_are_never_tiny() -> None:
    for case in CASES:
        product = _product(case)
        tiling = choose_tiling(product, H200)
        splits = choose_splits(product, tiling, H200)
        assert splits == 1 or case.K // tiling.inputs >= 4 * splits, case.name
        assert splits == 1 or case.T < 2048 or case.N * case.T < 2 * 132 * 128 * 128, case.name


@pytest.mark.parametrize(("target", "room"), [(H200, GPUS["h200"].shared_memory), (AMPERE, 99 << 10)])
def test_tiles_fit_in_shared_memory(target: Target, room: int) -> None:
    """Before Hopper in that of the smallest GPU of the generation."""
    for case in CASES:
        product = _product(case)
        tiling = choose_tiling(product, target)
        weight = tiling.outputs * tiling.inputs // product.codes_per_byte
        rows = tiling.rows * tiling.inputs * product.dtype.itemsize
        # One more of the rows: their halves are put apart.
        assert tiling.num_stages * (weight + rows) + rows <= room, case.name


def test_auto_is_xla_on_a_cpu() -> None:
    args = INT4.make(7).args
    auto, xla = (op.quant_matmul(*args, implementation=name) for name in ("auto", "xla"))
    assert np.array_equal(auto, xla)


def _lowered(case: Case) -> str:
    inputs = case.make(0)
    with abstract_gpus("h100"):
        run = jax.jit(lambda *args: op.quant_matmul(*args, **inputs.static))
        return run.trace(*inputs.args).lower(lowering_platforms=("cuda",)).as_text()


def test_auto_is_triton_on_a_gpu_and_logs_why_not_once(caplog: pytest.LogCaptureFixture) -> None:
    unsupported = Case("fp8 with zero points", 2, 64, 128, "fp8", asymmetric=True)
    with caplog.at_level(logging.WARNING):
        assert "xla.gpu.triton" in _lowered(replace(INT4, dtype="bfloat16"))
        assert not caplog.records
        assert "xla.gpu.triton" not in _lowered(unsupported)
        _lowered(unsupported)
    [record] = caplog.records
    assert "zero points of integers only" in record.getMessage()


def test_many_rows_of_float8_are_left_to_the_library_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    few = Case("few", 64, 64, 128, "fp8", activations="fp8")
    with caplog.at_level(logging.WARNING):
        assert "xla.gpu.triton" in _lowered(few)
        assert "xla.gpu.triton" not in _lowered(replace(few, T=65))
        assert "xla.gpu.triton" in _lowered(replace(few, T=65, activations="float"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.int8}, "bfloat16, float16 or float32 rows; got int8"),
        ({"values": jnp.float8_e5m2}, r"uint8 \(4 bits\), int8 and float8_e4m3fn; got float8_e5m2"),
        ({"zero": jnp.int8}, "zero points of integers only"),
        ({"outputs": 2**24}, "less than 2 GiB; got 2,147,483,648 bytes"),
    ],
)
def test_unsupported_types_are_refused_with_what_is_supported(change: dict[str, Any], message: str) -> None:
    outputs = change.get("outputs", 32)
    array = jax.ShapeDtypeStruct
    values = array((outputs, 128), change.get("values", jnp.float8_e4m3fn))
    zero = array((outputs, 1), change["zero"]) if "zero" in change else None
    args = (array((2, 128), change.get("x", jnp.bfloat16)), values, array((outputs, 1), jnp.float32), zero)
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(lambda *args: op.quant_matmul(*args, implementation="triton"), *args)


def test_unknown_implementation_is_named() -> None:
    with pytest.raises(ValueError, match="'cutlass'; choose auto, reference, xla or triton"):
        op.quant_matmul(*INT4.make(0).args, implementation="cutlass")
