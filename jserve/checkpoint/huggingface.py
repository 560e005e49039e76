"""A Hugging Face directory: `config.json` and safetensors, in one file or in shards with an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jserve.checkpoint.adapter import ADAPTER, adapter_refusal
from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.embedder import module_folders, with_embedder
from jserve.checkpoint.json_file import read_json
from jserve.checkpoint.quantization_files import with_quantization
from jserve.checkpoint.safetensors_file import SafetensorsFile
from jserve.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HuggingFaceCheckpoint:
    """A `Checkpoint`. Tensor names are left as the files have them."""

    format = "huggingface"

    def __init__(self, path: Path, *, needs_weights: bool = True, architecture: str | None = None) -> None:
        self.path = path
        self._config = with_quantization(with_embedder(read_json(path / "config.json"), path), path)
        if architecture is not None:
            self._config["architectures"] = [architecture]
        generation = path / "generation_config.json"
        self._generation_config = read_json(generation) if generation.exists() else {}
        self._shards: dict[str, SafetensorsFile] = {}
        try:
            self._where = self._open_shards() if needs_weights else {}
            self._in_file = dict(zip(self._where, self._where, strict=True))
            if needs_weights:
                self._open_modules()
        except BaseException:
            self.close()
            raise
        self._infos = {name: shard.infos[self._in_file[name]] for name, shard in self._where.items()}

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def generation_config(self) -> dict[str, Any]:
        return dict(self._generation_config)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        return self._where[name].read(self._in_file[name], index)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        if (self.path / SINGLE).exists():
            shard = self._shard(SINGLE)
            return dict.fromkeys(shard.infos, shard)
        if not (self.path / INDEX).exists():
            return self._open_unlisted()
        where = {}
        for name, file in _weight_map(self.path / INDEX).items():
            shard = self._shard(file)
            if name not in shard.infos:
                raise CheckpointError(f"{self.path / file} lacks tensor {name!r}, which {INDEX} places there")
            where[name] = shard
        return where

    def _open_modules(self) -> None:
        """What sentence-transformers keeps in folders of their own, under the folders' names."""
        for folder in module_folders(self._config):
            if not (self.path / folder / SINGLE).is_file():
                raise CheckpointError(_no_weights(self.path / folder))
            shard = self._shards[folder] = SafetensorsFile(self.path / folder / SINGLE)
            for name in shard.infos:
                self._where[f"{folder}.{name}"] = shard
                self._in_file[f"{folder}.{name}"] = name

    def _open_unlisted(self) -> dict[str, SafetensorsFile]:
        """Shards whose index was not fetched: their names say whether all are there."""
        where: dict[str, SafetensorsFile] = {}
        for file in _shard_names(self.path):
            shard = self._shard(file)
            twice = next((name for name in shard.infos if name in where), None)
            if twice is not None:
                raise CheckpointError(f"{self.path / file} has tensor {twice!r}, as another shard has too")
            where |= dict.fromkeys(shard.infos, shard)
        return where

    def _shard(self, file: str) -> SafetensorsFile:
        if file not in self._shards:
            path = self.path / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, which is one of the model's shards; fetch the model again")
            self._shards[file] = SafetensorsFile(path)
        return self._shards[file]


LONGEST_NAME = 255
"""Characters of a file's name, on every system that a model is kept on."""


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


_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


def _shard_names(path: Path) -> list[str]:
    """All shards of the only set of numbered files. Raises CheckpointError where there is none, or several."""
    matched = [match for file in sorted(path.glob("*.safetensors")) if (match := _NUMBERED.fullmatch(file.name))]
    sets = {(match[1], match[3]) for match in matched}
    if not sets:
        raise CheckpointError(_no_weights(path))
    if len(sets) > 1:
        names = ", ".join(sorted(f"{stem}-...-of-{count}" for stem, count in sets))
        raise CheckpointError(f"{path} holds several sets of shards ({names}) and no {INDEX}; keep one of them")
    [(stem, count)] = sets
    if int(count) > MOST_SHARDS:
        raise CheckpointError(f"{path}: shards are numbered up to {int(count):,}; at most {MOST_SHARDS:,} are read")
    width = len(matched[0][2])
    return [f"{stem}-{number:0{width}d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]


MOST_SHARDS = 10_000
"""Far more than any model has."""
_FOREIGN = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy"}


def _no_weights(path: Path) -> str:
    """Why there are none, from what is there instead."""
    if (path / ADAPTER).exists():
        return adapter_refusal(path)
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if others:
        of_mistral = " in the format of Mistral's own library" if "consolidated.safetensors" in others else ""
        return (
            f"{path} holds {others[0]}{of_mistral}, but neither {SINGLE} nor {INDEX}, which are what is read; fetch "
            "the model's files in Hugging Face format, or name its only file so"
        )
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        return (
            f"{path} holds only pickled weights ({pickled[0]}), which can run code when read; convert to "
            "safetensors: AutoModelForCausalLM.from_pretrained(path).save_pretrained(path)"
        )
    foreign = sorted(file.name for file in path.iterdir() if file.suffix in _FOREIGN)
    if foreign:
        kind = _FOREIGN[Path(foreign[0]).suffix]
        return f"{path} holds weights of {kind} alone ({foreign[0]}); fetch the model's safetensors, or convert them"
    return f"{path} holds no weights: neither {SINGLE} nor {INDEX} nor a .gguf file is there"
