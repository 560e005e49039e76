"""Checkpoints of the compressed-tensors library (llm-compressor): "pack-quantized" integers of 4 and 8 bits,
"int-quantized" and "float-quantized" values with or without rounded activations, several of these in one model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jserve.errors import CheckpointError
from jserve.quant.packed_words import codes, packed_bytes, stored_zero, words_of
from jserve.quant.plain_values import PlainValues
from jserve.quant.scheme import (
    Array,
    Read,
    Scheme,
    Shapes,
    Source,
    StoredScheme,
    consecutive,
    field_of,
    module_names,
    shared_index,
)
from jserve.quant.weight import Layout

METHOD = "compressed-tensors"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class PackedWeight(StoredScheme):
    """A `Scheme`: `weight_packed` i32[outputs, inputs / 8], zero points packed along the outputs."""

    bits: int
    group_size: int
    """0: one scale per output."""
    symmetric: bool
    act_order: bool
    scale_dtype: str

    def layout(self, inputs: int) -> Layout:
        ordered = self.act_order and self.group_size > 0
        return Layout(f"int{self.bits}", self.group_size, not self.symmetric, ordered, scale_dtype=self.scale_dtype)

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        stem, (outputs, inputs) = name.removesuffix("weight"), shape
        layout, per_word = self.layout(inputs), 32 // self.bits
        groups = layout.groups(inputs)
        shapes: Shapes = {
            f"{stem}weight_packed": (outputs, -(-inputs // per_word)),
            f"{stem}weight_scale": (outputs, groups),
        }
        if layout.asymmetric:
            shapes[f"{stem}weight_zero_point"] = (-(-outputs // per_word), groups)
        if layout.ordered:
            shapes[f"{stem}weight_g_idx"] = (inputs,)
        return shapes

    def values(self, read: Read, stem: str, rows: slice, columns: slice) -> Array:
        return packed_bytes(read(f"{stem}weight_packed", (rows,)), self.bits)[:, columns]

    def scales(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        stored = read(f"{stem}weight_scale", (rows,))
        return stored.reshape(len(stored), -1)[:, groups]

    def zeros(self, read: Read, stem: str, rows: slice, groups: slice) -> Array:
        words, within = words_of(rows, self.bits)
        stored = read(f"{stem}weight_zero_point", (words,))
        by_group = codes(stored.reshape(len(stored), -1)[:, groups].T, self.bits)
        return stored_zero(by_group[:, within].T, self.bits)

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        if not self.act_order:
            return consecutive(inputs, self.group_size)
        return shared_index(source, read, "weight_g_idx", self.layout(inputs).groups(inputs))


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """A `Quantization`: groups of targets, each with its scheme. A name beats a pattern, a pattern the class."""

    name: str
    groups: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignored: tuple[str, ...]

    def scheme(self, module: str) -> Scheme | None:
        if any(_rank(target, module) is not None for target in self.ignored):
            return None
        ranked = [
            (rank, number)
            for number, (targets, _) in enumerate(self.groups)
            for target in targets
            if (rank := _rank(target, module)) is not None
        ]
        return self.groups[min(ranked)[1]][1] if ranked else None


def _rank(target: str, module: str) -> int | None:
    """How closely a target names a linear layer, 0 the closest; None where it does not."""
    names = module_names(module)
    if target in names:
        return 0
    if target.startswith("re:"):
        return 1 if any(re.match(target.removeprefix("re:"), name) for name in names) else None
    return 2 if target == "Linear" else None


def read_compressed_tensors(stored: Mapping[str, Any], scale_dtype: str) -> CompressedTensors:
    """Raises CheckpointError for a variant that is not supported."""
    if (stored.get("sparsity_config") or {}).get("format", "dense") != "dense" or stored.get("transform_config"):
        raise CheckpointError(
            "compressed-tensors with sparsity or transforms is not supported; supported are values "
            f"alone, in the formats {', '.join(FORMATS)}"
        )
    field_of(stored, "quantization_status", (None, "compressed"), METHOD)
    if not stored.get("config_groups"):
        raise CheckpointError(f"quantization_config of {METHOD} has no config_groups, which say what is quantized")
    groups = []
    for group in stored["config_groups"].values():
        kind = field_of({"format": group.get("format") or stored.get("format")}, "format", FORMATS, METHOD)
        targets = tuple(group.get("targets") or ("Linear",))
        groups.append((targets, _scheme(kind, group.get("weights") or {}, group.get("input_activations"), scale_dtype)))
    ignored = tuple(stored.get("ignore") or ())
    for pattern in (*ignored, *(target for targets, _ in groups for target in targets)):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise CheckpointError(f"quantization_config: {pattern!r} is no pattern: {error}") from None
    return CompressedTensors(METHOD, tuple(groups), ignored)


def _scheme(kind: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, scale_dtype: str) -> Scheme:
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    field_of({"strategy": strategy}, "strategy", ("tensor", "channel", "group", "block"), METHOD)
    symmetric = bool(weights.get("symmetric", True))
    if kind == "pack-quantized":
        field_of({"strategy": strategy}, "strategy", ("channel", "group"), f"{METHOD}, pack-quantized")
        if inputs:
            raise CheckpointError(
                "compressed-tensors: packed weights with rounded activations are not supported; "
                "supported are packed weights alone (w4a16, w8a16)"
            )
        return PackedWeight(
            bits=field_of(weights, "num_bits", (4, 8), f"{METHOD}, pack-quantized"),
            group_size=_group_size(weights) if strategy == "group" else 0,
            symmetric=symmetric,
            act_order=weights.get("actorder") in ("group", "dynamic", True),
            scale_dtype=scale_dtype,
        )
    field_of(weights, "num_bits", (8,), f"{METHOD}, {kind}")
    if not symmetric:
        raise CheckpointError(f"compressed-tensors, {kind}: asymmetric weights are supported in pack-quantized alone")
    value = "fp8" if field_of(weights, "type", ("int", "float"), METHOD) == "float" else "int8"
    block = (1, _group_size(weights)) if strategy == "group" else (1, 0)
    if strategy == "block":
        block = tuple(weights["block_structure"])
    activations, static = _activations(value, strategy, inputs)
    return PlainValues(value, strategy, block, activations, static)


def _activations(value: str, strategy: str, inputs: Mapping[str, Any] | None) -> tuple[str, bool]:
    """What activations are rounded to, and whether with a fixed scale."""
    if not inputs or strategy in ("group", "block"):
        # Scales of groups leave activations as they are, which is the finer of both.
        return "float", False
    field_of(inputs, "num_bits", (8,), f"{METHOD}, input_activations")
    field_of(inputs, "symmetric", (None, True), f"{METHOD}, input_activations")
    field_of(inputs, "type", ("float" if value == "fp8" else "int",), f"{METHOD}, input_activations")
    return value, not inputs.get("dynamic", False)


def _group_size(weights: Mapping[str, Any]) -> int:
    size = weights.get("group_size")
    if type(size) is not int or size < 2 or size % 2:
        raise CheckpointError(f"quantization_config of {METHOD}: group_size is {size!r} but must be even")
    return size
