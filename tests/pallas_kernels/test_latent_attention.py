"""Latent attention: what is refused, what a shared plan and bits of bfloat16 may not change, and no copy of pages."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.latent_attention as op
from pallas_kernels.latent_attention.cases import CASES
from pallas_kernels.latent_attention.reference import reference
from pallas_kernels.paged_attention import prepare, write_pages

MIXED = next(case for case in CASES if case.name == "mixed_f32")


def test_one_plan_serves_every_layer_also_over_bits_of_bfloat16() -> None:
    inputs = replace(MIXED, padding_rows=1).make(3)
    q, pages, *rows = inputs.args
    narrow = pages.astype(jnp.bfloat16)
    bits = jax.lax.bitcast_convert_type(narrow, jnp.uint16)
    q = q.astype(jnp.bfloat16).astype(jnp.float32)
    step = {"tokens": q.shape[0], "pages": pages.shape[0], "page_size": MIXED.B}
    plan = prepare(*rows, **step, implementation="xla")
    got = op.latent_attention(q, bits, *rows, **inputs.static, plan=plan)
    expected = reference(q, narrow.astype(jnp.float32), *rows, **inputs.static)
    # Scaled queries and weights of the softmax are rounded to bfloat16, whose half unit is 2**-9.
    np.testing.assert_allclose(got, expected, atol=3 * 2**-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": 8}, "page sizes 16, 32, 64 and 128; got 8"),
        ({"rank": 48}, "latents of 16 to 512, a power of two; got 48"),
        ({"rank": 1024}, "latents of 16 to 512, a power of two; got 1024"),
        ({"rope": 12}, "rotary parts of 8 to 128 that are multiples of 8; got 12"),
        ({"dtype": "uint16"}, "both bfloat16, both float16 or both float32; got q uint16"),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_unsupported_shapes_are_refused_with_what_is_supported(change: dict, message: str, decode: bool) -> None:
    shape = {"rank": 32, "rope": 8, "B": 16, "dtype": "float32"} | change
    width = shape["rank"] + shape["rope"]
    floats = [jax.ShapeDtypeStruct(s, shape["dtype"]) for s in ((1, 4, width), (2, 1, shape["B"], width))]
    integers = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 2), (2,), (1,))]
    run = functools.partial(op.latent_attention, rank=shape["rank"], scale=1.0, decode=decode, implementation="triton")
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(run, *floats, *integers)


def test_unknown_implementation_is_named() -> None:
    inputs = MIXED.make(0)
    with pytest.raises(ValueError, match="'cudnn'; choose auto, reference, xla, native or triton"):
        op.latent_attention(*inputs.args, **inputs.static, implementation="cudnn")


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_step_that_donates_its_latents_copies_none(dtype: str) -> None:
    N, B, D, T = 800, 16, 24, 4
    ints = jnp.zeros((T, 4), jnp.int32)

    def step(pages, new, slots, table, starts, contexts):
        pages = write_pages(pages, new[:, None], slots)
        q = jnp.tile(new[:, None], (1, 3, 1))
        return pages, op.latent_attention(q, pages, table, starts, contexts, rank=16, scale=1.0, implementation="xla")

    args = (jnp.zeros((N, 1, B, D), dtype), jnp.zeros((T, D)), ints[:, 0], ints, jnp.arange(T + 1), ints[:, 0])
    compiled = jax.jit(step, donate_argnums=0).lower(*args).compile()
    assert not re.findall(rf"= (?:f32|u16|bf16)\[{N},1,{B},(?:{D}|16)\]\S* (?:copy|slice)\(", compiled.as_text())
    assert compiled.memory_analysis().temp_size_in_bytes < args[0].nbytes
