"""AWQ checkpoints (AutoAWQ, "gemm"): codes of 4 bits packed along the outputs, `qweight` i32[inputs, outputs / 8],
eight outputs to a word in the order 0 2 4 6 1 3 5 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jserve.errors import CheckpointError
from jserve.quant.packed_words import codes, stored_zero, words_of
from jserve.quant.rounding import pack_pairs
from jserve.quant.scheme import Array, Read, Shapes, StoredScheme, field_of, matches
from jserve.quant.weight import Layout

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word each of eight outputs lies."""


@dataclass(frozen=True, slots=True)
class AwqWeight(StoredScheme):
    """A `Scheme`."""

    group_size: int
    asymmetric: bool
    scale_dtype: str

    def layout(self, inputs: int) -> Layout:
        grouped = self.group_size if 0 < self.group_size < inputs else 0
        return Layout("int4", grouped, self.asymmetric, scale_dtype=self.scale_dtype)

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        stem, (outputs, inputs) = name.removesuffix("weight"), shape
        groups = self.layout(inputs).groups(inputs)
        shapes: Shapes = {f"{stem}qweight": (inputs, outputs // 8), f"{stem}scales": (groups, outputs)}
        return shapes | ({f"{stem}qzeros": (groups, outputs // 8)} if self.asymmetric else {})

    def values(self, read: Read, stem: str, rows: slice, columns: slice) -> Array:
        words, within = words_of(rows, 4)
        inputs = slice(2 * columns.start, 2 * columns.stop)
        return pack_pairs(_in_order(read(f"{stem}qweight", (inputs, words)))[:, within].T)

    def scales(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        return read(f"{stem}scales", (groups, rows)).T

    def zeros(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        words, within = words_of(rows, 4)
        return stored_zero(_in_order(read(f"{stem}qzeros", (groups, words)))[:, within], 4).T


def _in_order(words: Array) -> Array:
    """i32[rows, words] to u8[rows, 8 * words], outputs in order."""
    by_word = codes(words, 4).reshape(len(words), -1, 8)
    return np.ascontiguousarray(by_word[..., PLACES]).reshape(len(words), -1)


@dataclass(frozen=True, slots=True)
class Awq:
    """A `Quantization`: all linear layers but the ignored alike."""

    name: str
    weight: AwqWeight
    ignored: tuple[str, ...]

    def scheme(self, module: str) -> AwqWeight | None:
        return None if any(matches(module, pattern) for pattern in self.ignored) else self.weight


def read_awq(stored: Mapping[str, Any], scale_dtype: str) -> Awq:
    """Raises CheckpointError for a variant that is not supported."""
    fields = {"bits": stored.get("w_bit"), "group_size": stored.get("q_group_size", 128), **stored}
    field_of(fields, "bits", (4,), "awq")
    if str(fields.get("version", "gemm")).lower() != "gemm":
        raise CheckpointError(f"quantization_config of awq: version is {fields['version']!r}; supported is 'gemm'")
    size = fields["group_size"]
    if type(size) is not int or size == 0 or (size % 2 and size != -1):
        raise CheckpointError(f"quantization_config of awq: group_size is {size!r} but must be -1 or even")
    weight = AwqWeight(size, bool(fields.get("zero_point", True)), scale_dtype)
    return Awq("awq", weight, tuple(stored.get("modules_to_not_convert") or ()))
