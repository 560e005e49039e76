"""Packed weights on their way from a checkpoint: some tiles at a time, so that no whole weight is unpacked at once."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from jserve.layers.source import Index, ReadTensor, Source, aligned_empty
from jserve.quant import PackedScheme
from jserve.weights.quantized import ArrayForm
from pallas_kernels.packed_matmul import TILE

CHUNK_VALUES = 1 << 22
"""Weights read at a time: 4 MiB of codes."""


def read_packed(
    scheme: PackedScheme, source: Source, read: ReadTensor, shape: tuple[int, ...], forms: Mapping[str, ArrayForm]
) -> dict[str, np.ndarray]:
    """All arrays of one weight `[*outputs, inputs]` on the host, by the names and of the forms that the model has."""
    *outputs, inputs = shape
    arrays = {name: aligned_empty(form.shape, form.dtype) for name, form in forms.items()}
    first = 0
    for part in chunks((*outputs,), inputs):
        last = first + math.prod(each.stop - each.start for each in part) // TILE
        for name, array in scheme.read_packed(source, read, part, inputs).items():
            arrays[name][first:last] = array
        first = last
    return arrays


def chunks(outputs: tuple[int, ...], inputs: int) -> Iterator[Index]:
    """Slices that cover all outputs once, in their order, of whole tiles and about CHUNK_VALUES weights each."""
    steps = []
    for axis, size in enumerate(outputs):
        each = inputs * math.prod(outputs[axis + 1 :])
        least = TILE if axis == len(outputs) - 1 else 1
        steps.append(min(size, max(least, CHUNK_VALUES // each // least * least)))
    starts = [range(0, size, step) for size, step in zip(outputs, steps, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(low, min(low + step, size)) for low, step, size in zip(corner, steps, outputs, strict=True))


def dummy_packed(forms: Mapping[str, ArrayForm], inputs: int, pool: np.ndarray) -> dict[str, np.ndarray]:
    """Random codes of 4 or 8 bits whose weights deviate by 0.02, as those of float layers do. pool: f32[many]."""
    noise = (np.modf(np.abs(pool) * 1e4)[0] * 256).astype(np.uint8)
    is_byte = forms["codes"].shape[1] * 4 == inputs
    arrays = {"codes": np.resize(noise, forms["codes"].shape)}
    spread = 73.6 if is_byte else 4.61
    arrays["scale"] = np.full(forms["scale"].shape, 0.02 / spread).astype(forms["scale"].dtype)
    if "minimum_codes" in forms:
        arrays["minimum_codes"] = np.full(forms["minimum_codes"].shape, 0 if is_byte else 8, np.int8)
    return arrays
