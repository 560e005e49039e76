"""Weights that stay in the bits of their GGUF file: which modules have blocks, and how these are read and packed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jserve.quant.gguf_blocks import FORMS, take_apart
from jserve.quant.packed_matrix import PackedLayout
from jserve.quant.packing import pack
from jserve.quant.scheme import Array, Index, Read, Shapes, Source


@dataclass(frozen=True, slots=True)
class GgufBlocks:
    """A `PackedScheme`. `read` gives blocks: u8[rows, blocks in a row, bytes in a block]."""

    kind: str
    """One of `FORMS`."""

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        return {name: shape}

    def packed_layout(self, inputs: int) -> PackedLayout | None:
        form = FORMS[self.kind]
        minimum = ("factors" if form.factors else "own") if form.minimum else ""
        factor_size = form.values // form.factors if form.factors else 0
        return PackedLayout(form.coding, form.values, factor_size, minimum, form.scale_dtype)

    def read_packed(self, source: Source, read: Read, outputs: Index, inputs: int) -> Mapping[str, Array]:
        form = FORMS[self.kind]
        width = inputs // form.values * form.size

        def answer(name: str, index: Index) -> Array:
            blocks = read(name, index[:-1])
            return blocks.reshape(*blocks.shape[:-2], -1)

        rows = source.read(answer, (*outputs, slice(0, width)))
        return pack(take_apart(rows.reshape(-1, width // form.size, form.size), self.kind), form.coding)


@dataclass(frozen=True, slots=True)
class Gguf:
    """A `Quantization` whose schemes are packed."""

    types: frozenset[tuple[str, str]]
    """Modules whose weight is made of whole blocks, with the name of the type."""
    name: str = "gguf"

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> "Gguf | None":
        """What a checkpoint's tensors, by name, have of such; None: nothing."""
        kept = {
            (name.removesuffix(".weight"), info.stored)
            for name, info in tensors.items()
            if getattr(info, "has_blocks", False) and info.stored in FORMS and len(info.shape) == 2
        }
        return cls(frozenset(kept)) if kept else None

    def scheme(self, module: str) -> GgufBlocks | None:
        kind = dict(self.types).get(module)
        return None if kind is None else GgufBlocks(kind)
