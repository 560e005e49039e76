"""Quantized weights on their way from a checkpoint: some outputs at a time, so that no whole weight is ever
in floating point; the packed arrays then go to their devices.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jserve.layers.source import Index, ReadTensor, Source, aligned_empty
from jserve.quant import QuantizedWeight, Scheme

CHUNK_VALUES = 1 << 24
"""Weights read at a time: 64 MiB of float32."""

UNREAD = (".weight_shape", ".g_idx", ".weight_g_idx", ".qzeros", ".weight_zero_point", ".input_scale", ".output_scale")
"""Tensors that quantizers write whether they say something or not."""


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """Shape and type of one array of a quantized weight."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_quantized(
    scheme: Scheme, source: Source, read: ReadTensor, forms: Mapping[str, ArrayForm]
) -> dict[str, np.ndarray]:
    """All arrays of one weight on the host, by the names and of the forms that the model has."""
    values, inputs = forms["values"], _inputs(forms)
    names = [name for name in ("values", "scale", "zero") if name in forms]
    arrays = {name: aligned_empty(forms[name].shape, forms[name].dtype) for name in names}
    for outputs in chunks(values.shape[:-1], inputs):
        parts = scheme.read(source, read, outputs, inputs)
        for name, array in arrays.items():
            array[outputs] = getattr(parts, name)
    if "group_index" in forms:
        arrays["group_index"] = scheme.read_group_index(source, read, inputs)
    if "input_scale" in forms:
        arrays["input_scale"] = scheme.read_input_scale(source, read)
    return arrays


def read_dequantized(scheme: Scheme, source: Source, read: ReadTensor, index: Index) -> np.ndarray:
    """A slice, with all inputs, of a weight that the model has in floating point: f32[*outputs, inputs]."""
    *outputs, inputs = index
    layout = scheme.layout(inputs.stop)
    assert layout is not None
    parts = scheme.read(source, read, tuple(outputs), inputs.stop)
    order = scheme.read_group_index(source, read, inputs.stop) if layout.ordered else None
    arrays: Any = (parts.values, parts.scale, parts.zero, order, None)
    return np.asarray(QuantizedWeight(*arrays).dequantize())


def chunks(outputs: tuple[int, ...], inputs: int) -> Iterator[Index]:
    """Slices that cover all outputs once, of about CHUNK_VALUES weights each."""
    steps = []
    for axis, size in enumerate(outputs):
        each = inputs * math.prod(outputs[axis + 1 :])
        steps.append(min(size, max(1, CHUNK_VALUES // each)))
    starts = [range(0, size, step) for size, step in zip(outputs, steps, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(low, min(low + step, size)) for low, step, size in zip(corner, steps, outputs, strict=True))


def dummy_quantized(scheme: Scheme, forms: Mapping[str, ArrayForm], pool: np.ndarray) -> dict[str, np.ndarray]:
    """Random values whose weights deviate by 0.02, as those of float layers do. pool: f32[many], likewise."""
    values, scale = forms["values"], forms["scale"]
    layout = scheme.layout(_inputs(forms))
    assert layout is not None
    spread = {"int4": 4.61, "int8": 73.6, "mxfp4": 2.93, "fp8": 1.0}[layout.kind]
    if layout.kind == "fp8":
        noise = (pool * 50).astype(ml_dtypes.float8_e4m3fn)
    else:
        # The fraction of a large multiple is spread evenly over all codes; -128 is not one of them.
        noise = np.maximum((np.modf(np.abs(pool) * 1e4)[0] * 256).astype(np.uint8), 1)
        noise = (noise - 128).astype(np.uint8) if layout.kind == "int8" else noise
    arrays = {
        "values": np.resize(noise.view(values.dtype), values.shape),
        "scale": np.full(scale.shape, 0.02 / spread, jnp.dtype(layout.scale_dtype)).view(scale.dtype),
    }
    if "zero" in forms:
        arrays["zero"] = np.full(forms["zero"].shape, 8 if layout.kind == "int4" else 0, np.int8)
    if "group_index" in forms:
        (inputs,) = forms["group_index"].shape
        arrays["group_index"] = (np.arange(inputs) * forms["scale"].shape[-1] // inputs).astype(np.int32)
    if "input_scale" in forms:
        arrays["input_scale"] = np.full((), 0.05, np.float32)
    return arrays


def _inputs(forms: Mapping[str, ArrayForm]) -> int:
    """How many inputs the weight has: uint8 are pairs of codes."""
    values = forms["values"]
    return values.shape[-1] * (2 if values.dtype == np.uint8 else 1)
