"""The directory that `jserve convert` writes: configuration, tokenizer, and weights for `weights/converted.py`.

    jserve.json             this format's version, and every array's name, shape and type
    config.json, generation_config.json, tokenizer.json, tokenizer_config.json
    weights/                an Orbax checkpoint of the arrays

Arrays are parameters as they are served, query, key and value in one. Names are that of the first tensor of the
source that an array is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.json_file import read_json
from jserve.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "jserve.json"
WEIGHTS = "weights"
VERSION = 1
_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "uint8", "int4", "int32", "uint32")


class ConvertedCheckpoint:
    """A `Checkpoint` whose tensors are whole parameters; `weights.converted` reads them."""

    format = "orbax"

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = path / MANIFEST
        content = read_json(manifest)
        if content.get("version") != VERSION:
            raise CheckpointError(
                f"{manifest} has version {content.get('version')!r} but this jserve reads {VERSION}; "
                "convert the model again"
            )
        if not (path / WEIGHTS).is_dir():
            raise CheckpointError(f"{path} has no folder {WEIGHTS}; convert the model again")
        arrays = content.get("arrays")
        if not isinstance(arrays, dict) or not arrays:
            raise CheckpointError(f"{manifest} lists no arrays; convert the model again")
        self._infos = {name: self._info(name, entry) for name, entry in arrays.items()}
        self._config = read_json(path / "config.json")
        self._generation_config = read_json(path / "generation_config.json")

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def generation_config(self) -> dict[str, Any]:
        return dict(self._generation_config)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        raise CheckpointError(f"{self.path} holds whole parameters, of which {name} is not read by itself")

    def close(self) -> None:
        """Nothing is held open."""

    def _info(self, name: str, entry: Any) -> TensorInfo:
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 2**40 for size in shape):
            raise CheckpointError(f"{self.path / MANIFEST}: array {name!r} has no proper shape")
        if dtype not in _DTYPES:
            raise CheckpointError(f"{self.path / MANIFEST}: array {name!r} has type {dtype!r}; known are {_DTYPES}")
        return TensorInfo(tuple(shape), dtype, self.path / MANIFEST, dtype)


def is_converted(path: Path) -> bool:
    """Whether `jserve convert` wrote this directory."""
    return (path / MANIFEST).is_file()
