"""A Hugging Face directory: `config.json` and safetensors, in one file or in shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.embedder import with_embedder
from jserve.checkpoint.json_file import read_json
from jserve.checkpoint.safetensors_file import SafetensorsFile
from jserve.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HuggingFaceCheckpoint:
    """A `Checkpoint`. Tensor names are left as the files have them."""

    format = "huggingface"

    def __init__(self, path: Path, *, needs_weights: bool = True) -> None:
        self.path = path
        self._config = with_embedder(read_json(path / "config.json"), path)
        generation = path / "generation_config.json"
        self._generation_config = read_json(generation) if generation.exists() else {}
        self._shards: dict[str, SafetensorsFile] = {}
        try:
            self._where = self._open_shards() if needs_weights else {}
        except BaseException:
            self.close()
            raise
        self._infos = {name: shard.infos[name] for name, shard in self._where.items()}

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def generation_config(self) -> dict[str, Any]:
        return dict(self._generation_config)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        return self._where[name].read(name, index)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        if (self.path / SINGLE).exists():
            shard = self._shard(SINGLE)
            return dict.fromkeys(shard.infos, shard)
        if not (self.path / INDEX).exists():
            raise CheckpointError(_no_weights(self.path))
        where = {}
        for name, file in _weight_map(self.path / INDEX).items():
            shard = self._shard(file)
            if name not in shard.infos:
                raise CheckpointError(f"{self.path / file} lacks tensor {name!r}, which {INDEX} places there")
            where[name] = shard
        return where

    def _shard(self, file: str) -> SafetensorsFile:
        if file not in self._shards:
            path = self.path / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing although {INDEX} names it; fetch the model again")
            self._shards[file] = SafetensorsFile(path)
        return self._shards[file]


LONGEST_NAME = 255
"""Of a file, on every system that a model is kept on."""


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to file name. Files outside the directory are refused: an index is untrusted input."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map from tensor names to files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise CheckpointError(f"{path} places tensor {name!r} in {file!r}, which is not a file of its directory")
    return weight_map


def _is_plain_name(file: str) -> bool:
    is_named = file not in ("", ".", "..") and len(file) <= LONGEST_NAME
    return is_named and PurePosixPath(file).name == file == PureWindowsPath(file).name


def _no_weights(path: Path) -> str:
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        return (
            f"{path} holds only pickled weights ({pickled[0]}), which can run code when read; convert to "
            "safetensors: AutoModelForCausalLM.from_pretrained(path).save_pretrained(path)"
        )
    return f"{path} holds no weights: neither {SINGLE} nor {INDEX} nor a .gguf file is there"
