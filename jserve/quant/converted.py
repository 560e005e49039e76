"""Weights that `jserve convert` wrote: quantized, and already as they are served.

Whatever format they came from, `quantization_config` then has `quant_method` "jserve" and the layout of every module.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from jserve.errors import CheckpointError
from jserve.quant.scheme import Array, Index, Parts, Read, Shapes, Source
from jserve.quant.weight import VALUE_TYPES, Layout

METHOD = "jserve"
_ACTIVATIONS = ("float", "int8", "fp8")
_SCALES = ("float32", "float16", "bfloat16")
_KINDS = {**dict.fromkeys(VALUE_TYPES, _SCALES), "mxfp4": ("float8_e8m0fnu",)}
"""With the types that their scales may have."""


@dataclass(frozen=True, slots=True)
class ConvertedWeight:
    """A `Scheme` whose arrays are read by `weights.converted`, not from tensors."""

    stored: Layout

    def layout(self, inputs: int) -> Layout:
        return self.stored

    def tensors(self, name: str, shape: tuple[int, ...]) -> Shapes:
        return {}

    def read(self, source: Source, read: Read, outputs: Index, inputs: int) -> Parts:
        raise NotImplementedError("arrays are read whole")

    def read_group_index(self, source: Source, read: Read, inputs: int) -> Array:
        raise NotImplementedError("arrays are read whole")

    def read_input_scale(self, source: Source, read: Read) -> Array:
        raise NotImplementedError("arrays are read whole")


@dataclass(frozen=True, slots=True)
class Kept:
    """A `Quantization`."""

    name: str
    layouts: tuple[tuple[str, Layout], ...]

    def scheme(self, module: str) -> ConvertedWeight | None:
        layout = dict(self.layouts).get(module)
        return None if layout is None else ConvertedWeight(layout)


def config_of(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """What `read_converted` reads."""
    return {"quant_method": METHOD, "modules": {module: asdict(layout) for module, layout in layouts.items()}}


def read_converted(stored: Mapping[str, Any], scale_dtype: str) -> Kept:
    """Raises CheckpointError where it is not what `config_of` made."""
    modules = stored.get("modules")
    if not isinstance(modules, Mapping) or not modules:
        raise CheckpointError("quantization_config of jserve lists no modules; convert the model again")
    return Kept(METHOD, tuple((str(module), _layout(module, entry)) for module, entry in modules.items()))


def _layout(module: str, entry: Any) -> Layout:
    with suppress(msgspec.ValidationError):
        layout = msgspec.convert(entry, Layout)
        known = layout.scale_dtype in _KINDS.get(layout.kind, ()) and layout.activations in _ACTIVATIONS
        if known and layout.group_size >= 0:
            return layout
    raise CheckpointError(f"quantization_config of jserve: {module} has the layout {entry!r}; convert the model again")
