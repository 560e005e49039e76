"""Finds NaN and infinity in a checkpoint while it is read: a model that computes with them answers nonsense."""

import logging
from typing import Any

import numpy as np

from jserve.checkpoint import Checkpoint
from jserve.layers.source import Index
from jserve.quant.gguf_blocks import halves_of

logger = logging.getLogger(__name__)

_INFINITY = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0_0000_0000_0000,
    "float8_e5m2": 0x7C,
    "float8_e4m3fn": 0x7F,
}
"""The bits of infinity by type, those of NaN above them; of the last, which has no infinity, those of NaN."""
_CHUNK = 1 << 18
"""Values looked at together, so that the second look finds them in the processor's cache."""
_MOST_NAMED = 3


class WatchedCheckpoint:
    """A `Checkpoint` that remembers which of its tensors were read and are not finite."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._broken: dict[str, None] = {}

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the tensors that hold NaN or infinity, as far as they were read."""
        return tuple(self._broken)

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`."""
        values = self._checkpoint.read(name, index)
        if not is_finite(values):
            self._broken[name] = None
        return values

    def read_blocks(self, name: str, rows: Index = ()) -> np.ndarray[Any, Any]:
        """See `GgufCheckpoint.read_blocks`; blocks whose scales are finite are."""
        checkpoint: Any = self._checkpoint
        blocks: np.ndarray[Any, Any] = checkpoint.read_blocks(name, rows)
        if not all(is_finite(half) for half in halves_of(blocks, checkpoint.tensors()[name].stored)):
            self._broken[name] = None
        return blocks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)


def is_finite(values: np.ndarray[Any, Any]) -> bool:
    """Whether no value is NaN or infinite. Integers are finite.

    Floats are compared as integers: those above infinity's bits are NaN, of either sign. Two largest values of
    integers take a tenth of the time of numpy's own test, which makes an array of the answers.
    """
    infinity = _INFINITY.get(values.dtype.name)
    if infinity is None:
        return True
    width = values.dtype.itemsize
    sign = 1 << (8 * width - 1)
    values = np.atleast_1d(values)
    if values.flags.c_contiguous:
        values = values.reshape(-1)
    rows = max(1, _CHUNK // max(1, values[:1].size))
    for start in range(0, len(values) if values.size else 0, rows):
        part = values[start : start + rows]
        part = part if part.strides[-1] == width else np.ascontiguousarray(part)
        if part.view(f"i{width}").max() >= infinity or part.view(f"u{width}").max() >= sign + infinity:
            return False
    return True


def listed(names: tuple[str, ...]) -> str:
    """The first few names."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
