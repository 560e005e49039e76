"""What the instructions of programs for an H200 say about how fast they can be."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gpu_target import abstract_gpus, why_unavailable
from pallas_kernels.paged_attention import paged_attention
from tests.pallas_kernels.ptx_of import innermost_loops, ptx_of
from tests.pallas_kernels.triton_ir import grids

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or "")


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_pages_are_written_by_plain_stores(dtype: str) -> None:
    ptx = ptx_of(f"write {dtype}")
    assert "st.global" in ptx
    assert "atom" not in ptx


def test_threads_of_the_threshold_meet_once_a_pass_and_not_for_each_block_of_elements() -> None:
    ptx = ptx_of("threshold")
    loops = [loop for loop in innermost_loops(ptx) if "ld.global" in loop]
    assert "bar.sync" in ptx
    assert loops
    assert not [loop for loop in loops if "bar.sync" in loop]


def test_innermost_loops_are_found_by_their_branches_back() -> None:
    ptx = "$L1:\nbar.sync 0;\n$L2:\nld.global;\n@%p1 bra $L2;\n@%p2 bra $L1;\nbra $L3;\n$L3:\nret;"
    assert innermost_loops(ptx) == ["$L2:\nld.global;"]


def test_a_decode_step_of_256_rows_starts_as_many_programs_however_long_contexts_may_be() -> None:
    """One for each row and KV head, as each has at least one part of its keys: none of them is without work."""
    ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((256, 131_072 // 64), (257,), (256,))]
    q, pages = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((256, 32, 128), (4096, 8, 64, 128)))
    run = functools.partial(paged_attention, scale=0.1, decode=True)
    with abstract_gpus("h200"):
        lowered = jax.jit(run).trace(q, pages, pages, *ints).lower(lowering_platforms=("cuda",))
    assert grids(lowered)["paged_decode_split"] == (256, 8, 1)
