"""Writes a model as a Hugging Face folder: into `NAME.part` first, which becomes the folder when all is there."""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jserve.errors import ConfigError

SHARD_BYTES = 4 << 30
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
TEMPLATES = "additional_chat_templates"


class FolderWriter:
    """A context; leaving it by an error leaves nothing behind. Raises ConfigError where the folder is there."""

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise ConfigError(f"{folder} exists; remove it, or name another folder")
        self.folder = folder
        self.part = folder.with_name(f"{folder.name}.part")
        self._waiting: dict[str, np.ndarray] = {}
        self._shards: list[list[str]] = []
        self._bytes = 0

    def __enter__(self) -> "FolderWriter":
        shutil.rmtree(self.part, ignore_errors=True)  # of a run that was killed
        self.part.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            shutil.rmtree(self.part, ignore_errors=True)

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Take a tensor; it is written with others, at the latest in the end."""
        self._waiting[name] = np.ascontiguousarray(tensor)
        self._bytes += tensor.nbytes
        if sum(waiting.nbytes for waiting in self._waiting.values()) >= SHARD_BYTES:
            self._write_shard()

    def finish(self, config: dict[str, Any]) -> int:
        """Write what is left and give the folder its name. Returns the bytes of all tensors."""
        if self._waiting:
            self._write_shard()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            (self.part / _waiting_name(number)).rename(self.part / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": weight_map}
            write_json(self.part / "model.safetensors.index.json", index)
        write_json(self.part / "config.json", config)
        self.part.rename(self.folder)
        return self._bytes

    def copy_others(self, source: Path) -> None:
        """Everything that lies beside the weights of a Hugging Face folder."""
        for entry in sorted(source.iterdir()):
            if entry.is_dir() and entry.name == TEMPLATES:
                shutil.copytree(entry, self.part / entry.name)
            elif entry.is_file() and not _is_weights(entry.name) and entry.name != "config.json":
                shutil.copy(entry, self.part / entry.name)

    def _write_shard(self) -> None:
        self._shards.append(list(self._waiting))
        save_file(self._waiting, self.part / _waiting_name(len(self._shards)), metadata={"format": "pt"})
        self._waiting = {}


def write_json(path: Path, content: Any) -> None:
    """With two spaces, as such files are."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def _waiting_name(number: int) -> str:
    return f"shard-{number}"


def _is_weights(name: str) -> bool:
    return name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
