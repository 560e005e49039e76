"""The experts of a mixture: the work follows the tokens, and a token's result only its own experts."""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gpu_target import abstract_gpus, gpu_topology, why_unavailable
from pallas_kernels.moe import moe
from pallas_kernels.moe.cases import Case, silu_gate
from pallas_kernels.moe.route import BLOCK, COMPARED, route
from pallas_kernels.moe.triton_tiling import Packing, Product, choose_rows, choose_tiling
from pallas_kernels.paged_attention.target import H200

MANY = Case("many experts", T=4, J=2, X=64, E=64, F=48)
run = functools.partial(moe, activate=silu_gate)


def _compiled(gpu: bool, dtype: str) -> jax.stages.Compiled:
    args = replace(MANY, dtype=dtype, bits=not gpu and dtype == "bfloat16").make(0).args
    if not gpu:
        return jax.jit(run).lower(*args).compile()
    place = jax.sharding.SingleDeviceSharding(gpu_topology("h200")[0])
    abstract = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place) for arg in args]
    with abstract_gpus("h200"):
        return jax.jit(run).trace(*abstract).lower(lowering_platforms=("cuda",)).compile()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_nothing_as_large_as_all_experts_is_computed(gpu: bool, dtype: str) -> None:
    """Neither a copy nor a conversion of the stacks, nor a product over them."""
    if gpu and why_unavailable() is not None:
        pytest.skip(why_unavailable())
    compiled = _compiled(gpu, dtype)
    arrays = re.findall(r"= \(?\w+\[([\d,]+)\]\S* ([\w-]+)\(", compiled.as_text())
    free = {"parameter", "bitcast", "get-tuple-element", "tuple", "bitcast-convert", "while"}
    largest = max(math.prod(map(int, shape.split(","))) for shape, kind in arrays if kind not in free)
    assert largest <= 2 * MANY.E * MANY.F, "an expert's gate and up at most"
    assert compiled.memory_analysis().temp_size_in_bytes < MANY.X * MANY.E * MANY.F


@pytest.mark.parametrize("scale", ["float16", "float32", "bits"])
@pytest.mark.parametrize("packed", ["int8", "fp8", "int4", "mxfp4"])
def test_packed_experts_are_widened_one_at_a_time(packed: str, scale: str) -> None:
    case = replace(MANY, dtype="float32", packed=packed, group=16, F=64)
    x, ids, weights, *stacks = case.make(0).args
    if scale != "bits":
        stacks = [replace(stack, scale=jnp.zeros_like(stack.scale, scale)) for stack in stacks]
    compiled = jax.jit(run).lower(x, ids, weights, *stacks).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 3 * case.E * case.F * 4, "a few of 64 experts"


def test_a_token_gets_the_same_alone_and_among_others_and_whatever_its_place() -> None:
    case = Case("batch", T=40, J=3, X=6, E=64, F=48, dtype="float32")
    x, ids, weights, *stacks = case.make(1).args
    stacks = [jnp.nan_to_num(stack) for stack in stacks]
    together = jax.jit(run)(x, ids, weights, *stacks)
    turned = jax.jit(run)(x[::-1], ids[::-1], weights[::-1], *stacks)[::-1]
    alone = jax.jit(run)(x[7:9], ids[7:9], weights[7:9], *stacks)
    # Sums of 64 and 48 terms of unit size in another order.
    np.testing.assert_allclose(turned, together, atol=3e-6)
    np.testing.assert_allclose(alone, together[7:9], atol=3e-6)


def test_all_tokens_may_choose_the_same_expert() -> None:
    case = Case("crowd", T=300, J=1, X=8, E=32, F=32, dtype="float32")
    x, ids, weights, *stacks = case.make(2).args
    args = (x, jnp.full_like(ids, 5), weights, *(jnp.nan_to_num(stack, nan=1.0) for stack in stacks))
    expected = run(*args, implementation="reference")
    np.testing.assert_allclose(jax.jit(run)(*args), expected, rtol=1e-4, atol=1e-4)
    assert (np.abs(expected).max(1) > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T", [1, 8, 64])
def test_a_few_tokens_leave_no_part_of_the_gpu_idle(T: int, dtype: str) -> None:
    """Qwen3-30B-A3B on an H200, with as many experts chosen as tokens of different texts choose on average."""
    chosen = 128 * (1 - (1 - 8 / 128) ** T)
    for K, N, P in ((2048, 768, 2), (768, 2048, 1)):
        product = Product(X=128, J=8, K=K, N=N, P=P, packing=Packing())
        tiling = choose_tiling(product, choose_rows(T, 8, 128, dtype), 8 * T, dtype, H200)
        assert chosen * -(-N // tiling.N) >= H200.num_cores


def test_what_the_triton_kernels_do_not_support_is_named() -> None:
    def gelu_gate(gate: jax.Array, up: jax.Array) -> jax.Array:
        return jax.nn.gelu(gate, approximate=False) * up

    with pytest.raises(NotImplementedError, match="activations without erf, such as silu"):
        moe(*MANY.make(0).args, activate=gelu_gate, implementation="triton")
    odd = replace(MANY, packed="int8", group=24, E=96).make(0).args
    with pytest.raises(NotImplementedError, match="groups of a power of two inputs; got 24"):
        run(*odd, implementation="triton")
    x, *others = MANY.make(0).args
    with pytest.raises(NotImplementedError, match="in the type of the tokens, or packed; got bfloat16 for float16"):
        run(x.astype(jnp.float16), *others, implementation="triton")


def test_unknown_implementation_is_named() -> None:
    with pytest.raises(ValueError, match="'cutlass'; choose auto, reference, xla or triton"):
        run(*MANY.make(0).args, implementation="cutlass")


@pytest.mark.parametrize("pairs", [8, COMPARED, COMPARED + 8, 9 * BLOCK, 4096 * 8])
def test_rows_are_put_in_the_order_of_their_experts(pairs: int) -> None:
    """Up to so many pairs by comparing all, above by blocks; ids of another device's experts come last."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    ids = np.random.default_rng(seed).integers(-3, 15, (pairs // 8, 8))
    routed = jax.jit(lambda ids: route(ids, 12, 16))(ids)
    wanted = np.argsort(np.where((ids >= 0) & (ids < 12), ids, 12).reshape(-1), kind="stable")
    np.testing.assert_array_equal(routed.order, wanted, err_msg=f"seed {seed}")
