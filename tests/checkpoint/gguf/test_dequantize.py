"""Our block decoders against the `gguf` package's."""

import gguf
import numpy as np
import pytest

from jserve.checkpoint.gguf.dequantize import BlockType, block_type, dequantize

PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


def _decodable() -> list[gguf.GGMLQuantizationType]:
    kinds = []
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


@pytest.mark.parametrize("kind", _decodable(), ids=lambda kind: kind.name)
def test_every_type_that_gguf_decodes_has_its_block_size(kind: gguf.GGMLQuantizationType) -> None:
    known = block_type(kind)
    assert known is not None
    assert (known.name, known.values, known.size) == (kind.name, *gguf.GGML_QUANT_SIZES[kind])


def test_plain_types_are_not_decoded() -> None:
    names = {known.name for number in range(64) if (known := block_type(number)) and known.dtype is not None}
    assert names == PLAIN


@pytest.mark.parametrize("kind", [kind for kind in _decodable() if kind.name not in PLAIN], ids=lambda kind: kind.name)
def test_random_blocks_decode_to_the_same_bits_as_in_gguf(kind: gguf.GGMLQuantizationType) -> None:
    known = block_type(kind)
    assert isinstance(known, BlockType)
    # More than one chunk of blocks, and a last one that is not full.
    blocks = np.random.default_rng(3).integers(0, 256, (2 * 65_536 // known.values + 3, known.size), np.uint8)
    with np.errstate(all="ignore"):  # random scales overflow, on both sides alike
        expected = gguf.dequantize(blocks, kind)
        actual = dequantize(blocks, known)
    np.testing.assert_array_equal(actual, expected)


def test_an_unknown_type_number_is_none() -> None:
    assert block_type(9999) is None
