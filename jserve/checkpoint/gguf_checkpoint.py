"""A GGUF file, or the parts of a split one, as a Hugging Face shaped checkpoint.

Names, row order, configuration and dequantized values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.dequantize import BlockType, block_type, dequantize
from jserve.checkpoint.gguf_config import ARCHITECTURES, build_config, build_generation_config
from jserve.checkpoint.gguf_file import GgufFile, GgufTensor
from jserve.checkpoint.gguf_names import NOT_WEIGHTS, PERMUTED_ARCHITECTURES, huggingface_name, permuted_part
from jserve.checkpoint.gguf_split import open_other_parts
from jserve.errors import CheckpointError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies and how to read it. `permuted_heads` is 0 where rows keep their order."""

    file: GgufFile
    tensor: GgufTensor
    kind: BlockType
    permuted_heads: int


class GgufCheckpoint:
    """A `Checkpoint` of one GGUF file or all parts of one, of which `path` is the first.

    Quantized tensors come out as float32; only the rows asked for.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        self._architecture = self._file.metadata.get("general.architecture")
        self._stored: dict[str, _Stored] = {}
        self._factors: list[float] | None = None
        self._parts = [self._file]
        try:
            self._check_supported()
            self._parts += open_other_parts(self._file)
            for file in self._parts:
                for tensor in file.tensors.values():
                    self._add(file, tensor)
            self._config = build_config(
                self._file.metadata,
                {name: stored.tensor.shape for name, stored in self._stored.items()},
                frequency_factors=self._factors,
                source=path,
            )
            self._undo_permutation()
        except BaseException:
            self.close()
            raise
        self._infos = {
            name: TensorInfo(
                stored.tensor.shape,
                (stored.kind.dtype or np.dtype(np.float32)).name,
                stored.file.path,
                stored.kind.name,
            )
            for name, stored in self._stored.items()
        }

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def generation_config(self) -> dict[str, Any]:
        return build_generation_config(self._file.metadata, self._config)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read(self, name: str, index: Index = ()) -> Array:
        stored = self._stored[name]
        if stored.permuted_heads:
            return self._read_permuted(stored, index)
        values = self._read(stored, index)
        values.flags.writeable = False
        return values

    def close(self) -> None:
        for file in self._parts:
            file.close()

    def _read(self, stored: _Stored, index: tuple[slice | Array, ...]) -> Array:
        raw, kind = self._blocks(stored), stored.kind
        if kind.dtype is not None:
            return raw[index]
        axes = len(stored.tensor.shape)
        full = (*index, *[slice(None)] * (axes - len(index)))
        first, stop, cut = _block_range(full[-1], stored.tensor.shape[-1], kind)
        blocks = raw[(*full[:-1], slice(first, stop))]
        values = dequantize(blocks.reshape(-1, kind.size), kind)
        return values.reshape(*blocks.shape[:-2], (stop - first) * kind.values)[..., cut]

    def _read_permuted(self, stored: _Stored, index: Index) -> Array:
        """Row r of the result is row `order[r]` of the file, head by head."""
        heads = stored.permuted_heads
        order = np.arange(stored.tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        rows = order[index[0]] if index else order
        if len(stored.tensor.shape) == 1:
            return self._read(stored, ())[rows]
        return self._read(stored, (rows, *index[1:]))

    def _blocks(self, stored: _Stored) -> Array:
        """The tensor as stored: its values, or u8[..., blocks in a row, bytes in a block]."""
        tensor, kind = stored.tensor, stored.kind
        if kind.dtype is not None:
            shape, dtype = tensor.shape, kind.dtype
        else:
            shape, dtype = (
                (*tensor.shape[:-1], tensor.shape[-1] // kind.values, kind.size),
                np.dtype(np.uint8),
            )
        flat = np.frombuffer(stored.file.file.buffer, dtype, math.prod(shape), tensor.offset)
        return flat.reshape(shape)

    def _check_supported(self) -> None:
        if self._architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.path} is a GGUF file of architecture {self._architecture!r}; supported are "
                f"{', '.join(ARCHITECTURES)}. Other models load from their Hugging Face directory"
            )

    def _add(self, file: GgufFile, tensor: GgufTensor) -> None:
        stored = _Stored(file, tensor, _check_tensor(file, tensor), 0)
        if tensor.name in NOT_WEIGHTS:
            self._factors = [float(factor) for factor in self._read(stored, ()).ravel()]
            return
        name = huggingface_name(tensor.name)
        if name is None:
            raise CheckpointError(
                f"{file.path}: tensor {tensor.name!r} is not known in architecture {self._architecture!r}; "
                "load the model from its Hugging Face directory"
            )
        if name in self._stored:
            raise CheckpointError(
                f"{file.path}: tensor {tensor.name!r} stands in another part too; the files are damaged"
            )
        self._stored[name] = stored

    def _undo_permutation(self) -> None:
        if self._architecture not in PERMUTED_ARCHITECTURES:
            return
        heads = {"q": self._config["num_attention_heads"], "k": self._config["num_key_value_heads"]}
        for name, stored in self._stored.items():
            part = permuted_part(stored.tensor.name)
            if part is None:
                continue
            rows = stored.tensor.shape[0]
            if rows % (2 * heads[part]):
                raise CheckpointError(
                    f"{self.path}: tensor {stored.tensor.name!r} has {rows} rows, which {heads[part]} heads "
                    "of an even size cannot share"
                )
            self._stored[name] = _Stored(stored.file, stored.tensor, stored.kind, heads[part])


def _check_tensor(file: GgufFile, tensor: GgufTensor) -> BlockType:
    kind = block_type(tensor.type_id)
    if kind is None:
        raise CheckpointError(f"{file.path}: tensor {tensor.name!r} has the unsupported GGML type {tensor.type_id}")
    count = math.prod(tensor.shape)
    if count == 0 or not tensor.shape or tensor.shape[-1] % kind.values:
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, which is empty or "
            f"whose rows are not whole {kind.name} blocks of {kind.values}"
        )
    file.file.require(tensor.offset, count // kind.values * kind.size, f"tensor {tensor.name!r}")
    return kind


def _block_range(part: slice | Array, length: int, kind: BlockType) -> tuple[int, int, slice]:
    """The blocks of a row that hold `part` of its values, and where in them those values lie."""
    assert isinstance(part, slice), "only rows are chosen by number"
    start, stop, step = part.indices(length)
    if step != 1:
        return 0, length // kind.values, part
    first = min(start, stop) // kind.values
    return (
        first,
        math.ceil(stop / kind.values),
        slice(start - first * kind.values, stop - first * kind.values),
    )
