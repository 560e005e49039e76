"""No offset into a large array wraps: each kernel is lowered beside arrays of 1 to 9 GiB, and its pointers are read.

Lowered from shapes alone, so nothing of that size is ever made.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.gpu_target import abstract_gpus
from pallas_kernels.latent_attention import latent_attention
from pallas_kernels.moe import PackedExperts, moe
from pallas_kernels.moe.cases import silu_gate
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.quant_matmul import quant_matmul
from pallas_kernels.sampling import kept_threshold
from tests.pallas_kernels.triton_ir import Offset, offsets

GIB = 1 << 30
SIZES = (1, 3, 5, 9)
T, ROWS, HEADS, DIM, PAGE, EXPERTS = 64, 8, 8, 128, 64, 128
Struct: Any = jax.ShapeDtypeStruct
each_size = pytest.mark.parametrize("gib", SIZES)


def lowered_offsets(function: Callable[..., Any], *args: Any) -> list[Offset]:
    with abstract_gpus("h200"):
        lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    read = offsets(lowered)
    assert read
    return read


def largest(read: list[Offset]) -> int:
    return max(offset.elements * offset.itemsize for offset in read)


def step() -> list[Any]:
    return [Struct(shape, jnp.int32) for shape in ((ROWS, 4096), (ROWS + 1,), (ROWS,))]


@each_size
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "uint8"])
@pytest.mark.parametrize("decode", [True, False])
def test_offsets_into_pages(decode: bool, dtype: str, gib: int) -> None:
    pages = Struct((gib * GIB // (HEADS * PAGE * DIM * jnp.dtype(dtype).itemsize), HEADS, PAGE, DIM), dtype)
    scale = Struct((*pages.shape[:3], 1), jnp.float32) if pages.dtype.itemsize == 1 else None
    tokens = ROWS if decode else T
    run = functools.partial(paged_attention, scale=0.1, decode=decode, implementation="triton")
    q = Struct((tokens, 4 * HEADS, DIM), jnp.bfloat16)
    read = lowered_offsets(run, q, pages, pages, *step(), None, scale, scale)
    assert largest(read) == gib * GIB
    assert not [offset for offset in read if offset.may_wrap]


@each_size
@pytest.mark.parametrize("decode", [True, False])
def test_offsets_into_latents(decode: bool, gib: int) -> None:
    pages = Struct((gib * GIB // (PAGE * 576 * 2), 1, PAGE, 576), jnp.bfloat16)
    run = functools.partial(latent_attention, rank=512, scale=0.1, decode=decode, implementation="triton")
    read = lowered_offsets(run, Struct((ROWS if decode else T, 16, 576), jnp.bfloat16), pages, *step())
    assert largest(read) > 0.99 * gib * GIB
    assert not [offset for offset in read if offset.may_wrap]


@each_size
@pytest.mark.parametrize("kind", ["", "int8", "fp8", "int4", "mxfp4"])
def test_offsets_into_experts(kind: str, gib: int) -> None:
    embed, pairs = 4096, kind in ("int4", "mxfp4")
    inner = gib * GIB * (2 if pairs else 1) // (EXPERTS * 2 * embed * (1 if kind else 2))

    def stack(*shape: int, inputs: int) -> Any:
        if not kind:
            return Struct((EXPERTS, inputs, *shape), jnp.bfloat16)
        values = Struct((EXPERTS, *shape, inputs // (1 + pairs)), jnp.uint8 if pairs else jnp.int8)
        scale = Struct((EXPERTS, *shape, inputs // 128), jnp.uint8 if kind == "mxfp4" else jnp.float32)
        return PackedExperts(values, scale, None, kind)

    routing = Struct((T, 8), jnp.int32), Struct((T, 8), jnp.float32)
    stacks = stack(2, inner, inputs=embed), stack(embed, inputs=inner)
    run = functools.partial(moe, activate=silu_gate, implementation="triton")
    read = lowered_offsets(run, Struct((T, embed), jnp.bfloat16), *routing, *stacks)
    assert largest(read) > 0.99 * gib * GIB
    assert not [offset for offset in read if offset.may_wrap]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn"])
def test_offsets_into_a_weight_and_one_that_is_too_large_is_refused(dtype: str) -> None:
    inputs, x = 16384, Struct((T, 16384), jnp.bfloat16)
    run = functools.partial(quant_matmul, implementation="triton")

    def of(size: int) -> list[Offset]:
        values = Struct((size // inputs, inputs // (2 if dtype == "uint8" else 1)), dtype)
        return lowered_offsets(run, x, values, Struct((size // inputs, 1), jnp.float32))

    assert not [offset for offset in of(GIB) if offset.may_wrap]
    with pytest.raises(NotImplementedError, match="less than 2 GiB"):
        of(3 * GIB * (2 if dtype == "uint8" else 1))


def test_offsets_into_the_largest_logits() -> None:
    """512 rows of the largest vocabularies: half a GiB."""
    rows = Struct((512,), jnp.int32), Struct((512,), jnp.float32)
    run = functools.partial(kept_threshold, implementation="triton")
    assert not [
        offset for offset in lowered_offsets(run, Struct((512, 262_144), jnp.float32), *rows) if offset.may_wrap
    ]


def test_bytes_that_are_not_read_in_words_would_wrap() -> None:
    """What JAX makes of such an array, and that the reader of these programs sees it."""

    def kernel(array: Any, out: Any) -> None:
        out[...] = array[pl.program_id(0), pl.ds(0, 64)]

    def run(array: jax.Array) -> jax.Array:
        params = plt.CompilerParams(num_warps=4, num_stages=1)
        return pl.pallas_call(kernel, grid=(1,), out_shape=Struct((64,), jnp.uint8), compiler_params=params)(array)

    assert [offset for offset in lowered_offsets(run, Struct((3 * GIB // 64, 64), jnp.uint8)) if offset.may_wrap]
