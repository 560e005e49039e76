"""Round-to-nearest quantization on the host, of weights `[..., inputs]` along their inputs."""

from typing import Any

import ml_dtypes
import numpy as np

from jserve.quant.scheme import Parts

Array = np.ndarray[Any, Any]

LARGEST_INT8 = 127.0
LARGEST_FP8 = 448.0


def round_int8(weight: Array) -> Parts:
    """One symmetric scale per output, to -127..127."""
    scale = _channel_scale(weight, LARGEST_INT8)
    return Parts(np.rint(weight / scale).astype(np.int8), scale)


def round_fp8(weight: Array) -> Parts:
    """One scale per output, to float8_e4m3fn."""
    scale = _channel_scale(weight, LARGEST_FP8)
    scaled = np.clip(weight / scale, -LARGEST_FP8, LARGEST_FP8)
    return Parts(scaled.astype(ml_dtypes.float8_e4m3fn), scale)


def round_int4(weight: Array, group_size: int) -> Parts:
    """Groups of inputs with a scale in bfloat16 and a zero point; the values fill 0..15 from the least to the
    largest (and 0, so that it stays 0). Codes are chosen for the rounded scale.
    """
    grouped = weight.reshape(*weight.shape[:-1], -1, group_size)
    least = np.minimum(grouped.min(-1), 0)
    largest = np.maximum(grouped.max(-1), 0)
    scale = np.maximum((largest - least) / 15, 1e-30).astype(ml_dtypes.bfloat16)
    wide = scale.astype(np.float32)
    zero = np.clip(np.rint(-least / wide), 0, 15)
    codes = np.clip(np.rint(grouped / wide[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
    return Parts(pack_pairs(codes.reshape(weight.shape)), scale, zero.astype(np.int8))


def pack_pairs(codes: Array) -> Array:
    """u8[..., inputs] below 16 to u8[..., inputs / 2], even inputs in the low halves."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_pairs(packed: Array) -> Array:
    """The inverse of `pack_pairs`."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def _channel_scale(weight: Array, largest: float) -> Array:
    """f32[..., 1]; an output of zeros keeps a scale that divides."""
    return np.maximum(np.abs(weight).max(-1, keepdims=True) / np.float32(largest), np.float32(1e-30))
