"""The directory that `jserve convert` writes: configuration, tokenizer, and weights as they are served.

    jserve.json             this format's version, and every array's name, shape and type
    config.json, generation_config.json, tokenizer.json, tokenizer_config.json
    ollama.json             of a model of Ollama's store: system prompt, parameters and the like
    weights/                an Orbax checkpoint of the arrays, each uncompressed in a file of its own (zarr)

Arrays are parameters as they are served, query, key and value in one. Names are that of the first tensor of the
source that an array is made of, with the part of a quantized weight; `config.json` then says the layout of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.json_file import read_json
from jserve.checkpoint.mapped_file import MappedFile
from jserve.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "jserve.json"
WEIGHTS = "weights"
VERSION = 2
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1, "uint8": 1, "int32": 4}
"""Bytes of a number."""


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(\[\w+\])?")
"""Brackets tell apart what one tensor of the source became several arrays of."""


class ConvertedCheckpoint:
    """A `Checkpoint` whose tensors are whole parameters, read from mapped files."""

    format = "converted"

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
        import ml_dtypes  # noqa: F401 (numpy then knows bfloat16 by name)
        import numpy as np

        info = self._infos[name]
        with MappedFile(info.file) as file:
            if index and info.shape:
                row = file.size // info.shape[0]
                rows = range(*index[0].indices(info.shape[0]))
                file.will_need(rows.start * row, len(rows) * row)
            values: np.ndarray[Any, Any] = np.frombuffer(file.buffer, info.dtype).reshape(info.shape)[index]
        return values

    def close(self) -> None:
        """Nothing is held open."""

    def _info(self, name: str, entry: Any) -> TensorInfo:
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 2**40 for size in shape):
            raise CheckpointError(f"{self.path / MANIFEST}: array {name!r} has no proper shape")
        if dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise CheckpointError(f"{self.path / MANIFEST}: array {name!r} has type {dtype!r}; known are {known}")
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{self.path / MANIFEST}: {name!r} is no name of an array")
        # As zarr calls the only piece of an array.
        file = self.path / WEIGHTS / name / ".".join("0" * max(1, len(shape)))
        wanted = math.prod(shape) * _DTYPES[dtype]
        try:
            size = file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}); convert the model again") from None
        if size != wanted:
            raise CheckpointError(f"{file} has {size:,} bytes but must have {wanted:,}; convert the model again")
        return TensorInfo(tuple(shape), dtype, file, dtype)


def is_converted(path: Path) -> bool:
    """Whether `jserve convert` wrote this directory."""
    return (path / MANIFEST).is_file()
