"""GPTQ checkpoints (AutoGPTQ, GPTQModel): codes of 4 or 8 bits packed along the inputs, `qweight` i32[inputs / 8,
outputs].

Format 1 ("gptq") stores zero points less one; format 2 ("gptq_v2") as they are. With `desc_act` the group of each
input is in `g_idx`. `dynamic` overrides single modules by patterns: "-:" leaves them out, "+:" changes fields.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jserve.errors import CheckpointError
from jserve.quant.packed_words import codes, packed_bytes, stored_zero, words_of
from jserve.quant.scheme import Array, Read, Shapes, Source, StoredScheme, consecutive, field_of, matches, shared_index
from jserve.quant.weight import Layout


@dataclass(frozen=True, slots=True)
class GptqWeight(StoredScheme):
    """A `Scheme`."""

    bits: int
    group_size: int
    symmetric: bool
    act_order: bool
    zero_offset: int
    scale_dtype: str

    def layout(self, inputs: int) -> Layout:
        grouped = self.group_size if 0 < self.group_size < inputs else 0
        ordered = self.act_order and grouped > 0
        return Layout(f"int{self.bits}", grouped, not self.symmetric, ordered, scale_dtype=self.scale_dtype)

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        stem, (outputs, inputs) = name.removesuffix("weight"), shape
        layout, per_word = self.layout(inputs), 32 // self.bits
        groups = layout.groups(inputs)
        shapes: Shapes = {f"{stem}qweight": (inputs // per_word, outputs), f"{stem}scales": (groups, outputs)}
        if layout.asymmetric:
            shapes[f"{stem}qzeros"] = (groups, -(-outputs // per_word))
        if layout.ordered:
            shapes[f"{stem}g_idx"] = (inputs,)
        return shapes

    def values(self, read: Read, stem: str, rows: slice, columns: slice) -> Array:
        return packed_bytes(read(f"{stem}qweight", (slice(None), rows)).T, self.bits)[:, columns]

    def scales(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        return read(f"{stem}scales", (groups, rows)).T

    def zeros(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        words, within = words_of(rows, self.bits)
        zero_points = codes(read(f"{stem}qzeros", (groups, words)), self.bits)[:, within]
        # A zero point of 0 is stored as -1, which is all ones.
        return stored_zero((zero_points.astype("int16") + self.zero_offset) & (2**self.bits - 1), self.bits).T

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        if not self.act_order:
            return consecutive(inputs, self.group_size)
        return shared_index(source, read, "g_idx", self.layout(inputs).groups(inputs))


@dataclass(frozen=True, slots=True)
class Gptq:
    """A `Quantization`."""

    name: str
    weight: GptqWeight
    overrides: tuple[tuple[str, GptqWeight | None], ...]
    ignored: tuple[str, ...]

    def scheme(self, module: str) -> GptqWeight | None:
        for pattern, weight in self.overrides:
            if re.match(pattern, module):
                return weight
        return None if any(matches(module, pattern) for pattern in self.ignored) else self.weight


def read_gptq(stored: Mapping[str, Any], scale_dtype: str) -> Gptq:
    """Raises CheckpointError for a variant that is not supported."""
    overrides: list[tuple[str, GptqWeight | None]] = []
    for pattern, fields in (stored.get("dynamic") or {}).items():
        bare = pattern.removeprefix("+:").removeprefix("-:")
        try:
            re.compile(bare)
        except re.error as error:
            raise CheckpointError(f"quantization_config of gptq: dynamic has the pattern {bare!r}: {error}") from None
        overrides.append((bare, None if pattern.startswith("-:") else _weight({**stored, **fields}, scale_dtype)))
    ignored = tuple(stored.get("modules_to_not_convert") or ())
    return Gptq("gptq", _weight(stored, scale_dtype), tuple(overrides), ignored)


def _weight(fields: Mapping[str, Any], scale_dtype: str) -> GptqWeight:
    kind = field_of(fields, "checkpoint_format", (None, "", "gptq", "gptq_v2"), "gptq")
    size = fields.get("group_size", -1)
    if type(size) is not int or size == 0 or (size % 2 and size != -1):
        raise CheckpointError(f"quantization_config of gptq: group_size is {size!r} but must be -1 or even")
    return GptqWeight(
        bits=field_of(fields, "bits", (4, 8), "gptq"),
        group_size=size,
        symmetric=bool(fields.get("sym", True)),
        act_order=bool(fields.get("desc_act", False)),
        zero_offset=0 if kind == "gptq_v2" else 1,
        scale_dtype=scale_dtype,
    )
