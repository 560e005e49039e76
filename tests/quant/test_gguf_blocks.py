"""Every GGML type that is kept in its own bits decodes to what the `gguf` package makes of it, bit for bit."""

import gguf
import jax
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from jserve.quant.gguf_blocks import FORMS, take_apart
from jserve.quant.packing import pack
from pallas_kernels.packed_matmul import PackedWeight, dequantize, dequantize_rows

ROWS = 48


def blocks_of(kind: str) -> np.ndarray:
    """u8[ROWS, blocks, bytes], random, with finite scales."""
    rng = np.random.default_rng()
    form = FORMS[kind]
    blocks = rng.integers(0, 256, (ROWS, 512 // form.values, form.size), dtype=np.uint8)
    for at in form.halves:
        blocks[..., at : at + 2] = rng.normal(size=blocks.shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(2, 250, blocks.shape[:-1])  # within float32, subnormal numbers left out
    return blocks


def packed(blocks: np.ndarray, kind: str) -> PackedWeight:
    coding = FORMS[kind].coding
    absent = dict.fromkeys(("high", "scale_codes", "minimum", "minimum_codes"))
    return PackedWeight(**{**absent, **pack(take_apart(blocks, kind), coding)}, coding=coding)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", FORMS)
def test_a_type_decodes_to_the_bits_of_the_gguf_package(kind: str) -> None:
    number = GGMLQuantizationType[kind]
    assert GGML_QUANT_SIZES[number] == (FORMS[kind].values, FORMS[kind].size)
    blocks = blocks_of(kind)
    expected = gguf.dequantize(blocks.reshape(ROWS, -1), number)
    weight = packed(blocks, kind)
    np.testing.assert_array_equal(np.asarray(jax.jit(dequantize)(weight)), expected)
    rows = np.array([17, 0, ROWS - 1, 3, ROWS + 5])
    np.testing.assert_array_equal(np.asarray(dequantize_rows(weight, rows)), expected[np.minimum(rows, ROWS - 1)])


@pytest.mark.parametrize("kind", FORMS)
def test_a_type_takes_at_most_a_fifth_more_than_its_file(kind: str) -> None:
    blocks = blocks_of(kind)
    assert sum(array.nbytes for array in jax.tree.leaves(packed(blocks, kind))) <= 1.2 * blocks.nbytes
