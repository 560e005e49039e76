"""Weights in 4 and 8 bits as published formats keep them: the inverse of `awq.py` and `gptq.py`, for `jserve quantize`.

AWQ is AutoAWQ's "gemm", GPTQ is format 1 of AutoGPTQ and GPTQModel; both with scales in float16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jserve.quant.awq import PLACES
from jserve.quant.scheme import Array, consecutive


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight `(codes - zero) * scale`; codes and zero points count from 0."""

    codes: Array
    """u8[outputs, inputs]"""
    scale: Array
    """f16[outputs, groups]"""
    zero: Array
    """u8[outputs, groups]"""

    def dequantize(self) -> Array:
        """f32[outputs, inputs]"""
        size = self.codes.shape[1] // self.scale.shape[1]
        zero, scale = (np.repeat(part.astype(np.float32), size, axis=1) for part in (self.zero, self.scale))
        return (self.codes - zero) * scale

    def part(self, rows: slice) -> "Rounded":
        """Some of its outputs."""
        return Rounded(self.codes[rows], self.scale[rows], self.zero[rows])


def tensors_of(rounded: Rounded, method: str, bits: int) -> dict[str, Array]:
    """What stands in a checkpoint in place of `weight`, by the last part of its name."""
    if method == "awq":
        return {
            "qweight": _words(_in_places(rounded.codes.T), 4),
            "qzeros": _words(_in_places(rounded.zero.T), 4),
            "scales": np.ascontiguousarray(rounded.scale.T),
        }
    inputs = rounded.codes.shape[1]
    return {
        "qweight": np.ascontiguousarray(_words(rounded.codes, bits).T),
        # Format 1 stores zero points less one.
        "qzeros": _words(((rounded.zero.astype(np.int16) - 1) & (2**bits - 1)).astype(np.uint8).T, bits),
        "scales": np.ascontiguousarray(rounded.scale.T),
        "g_idx": consecutive(inputs, inputs // rounded.scale.shape[1]),
    }


def config_of(method: str, bits: int, group_size: int) -> dict[str, Any]:
    """`quantization_config` of a model all of whose linear layers but the output projection are quantized."""
    common = {"quant_method": method, "bits": bits, "group_size": group_size}
    if method == "awq":
        return {**common, "version": "gemm", "zero_point": True, "modules_to_not_convert": ["lm_head"]}
    return {**common, "sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False}


def _in_places(codes: Array) -> Array:
    """u8[rows, outputs] with each eight outputs in the order of AWQ's words."""
    ordered = np.empty_like(codes).reshape(len(codes), -1, len(PLACES))
    ordered[..., PLACES] = codes.reshape(len(codes), -1, len(PLACES))
    return ordered.reshape(codes.shape)


def _words(codes: Array, bits: int) -> Array:
    """u8[rows, codes] to i32[rows, words], the first code of a word lowest."""
    codes = np.ascontiguousarray(codes)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4) if bits == 4 else codes
    return np.ascontiguousarray(packed).view("<i4")
