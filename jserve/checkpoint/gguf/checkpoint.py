"""A GGUF file, or the parts of a split one, as a Hugging Face shaped checkpoint.

Names, row order, configuration and dequantized values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jserve.checkpoint.base import Index, TensorInfo
from jserve.checkpoint.embedder import with_gguf_embedder
from jserve.checkpoint.gguf.config import build_config, build_generation_config, family_of, read_heads, read_layers
from jserve.checkpoint.gguf.dequantize import BlockType, block_type
from jserve.checkpoint.gguf.encoder_families import with_dense
from jserve.checkpoint.gguf.family import huggingface_tensors, is_beyond
from jserve.checkpoint.gguf.file import GgufFile, GgufTensor
from jserve.checkpoint.gguf.joined import Readable
from jserve.checkpoint.gguf.split import open_other_parts
from jserve.checkpoint.gguf.stored import Stored, has_blocks
from jserve.checkpoint.gguf.views import AsStored, HeadsTogether, RotatedInPairs, SomeHeads, Transposed, View
from jserve.errors import CheckpointError

Array = np.ndarray[Any, Any]

FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors that are configuration: what `gguf_config` makes of a rotary embedding's scaling."""


class GgufCheckpoint:
    """A `Checkpoint` of one GGUF file or all parts of one, of which `path` is the first.

    Quantized tensors come out as float32, only the rows asked for; gpt-oss's experts in MXFP4 stay packed.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        own_tensors: dict[str, Stored] = {}
        self._factors: dict[str, list[float]] = {}
        self._parts = [self._file]
        try:
            self._family = family_of(self._file.metadata, source=path)
            self._parts += open_other_parts(self._file)
            for file in self._parts:
                for tensor in file.tensors.values():
                    self._add(file, tensor, own_tensors)
            self._stored: dict[str, Readable] = self._family.join(own_tensors)
            shapes = {name: stored.shape for name, stored in self._stored.items()}
            config = build_config(self._file.metadata, shapes, factors=self._factors, source=path)
            self._config = with_dense(with_gguf_embedder(config, self._file.metadata), shapes)
        except BaseException:
            self.close()
            raise
        self._infos = {
            name: TensorInfo(
                stored.shape, stored.dtype.name, stored.origin.file.path, stored.origin.kind.name, has_blocks(stored)
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
        values = self._stored[name].read(index)
        values.flags.writeable = False
        return values

    def read_blocks(self, name: str, rows: Index = ()) -> Array:
        """Rows of a tensor whose `TensorInfo` has blocks, as they are: u8[rows, blocks in a row, bytes in a block]."""
        stored = self._stored[name]
        assert isinstance(stored, Stored)
        return stored.read_blocks(rows)

    def close(self) -> None:
        for file in self._parts:
            file.close()

    def _add(self, file: GgufFile, tensor: GgufTensor, stored: dict[str, Stored]) -> None:
        kind = _check_tensor(file, tensor)
        if tensor.name in FACTORS:
            factors = Stored(file, tensor, kind, AsStored()).read(())
            self._factors[tensor.name] = [float(factor) for factor in factors.ravel()]
            return
        if is_beyond(tensor.name, read_layers(self._file.metadata, source=self.path)):
            return
        heads, kv_heads = read_heads(self._file.metadata, source=self.path)
        named = dict(huggingface_tensors(self._family, tensor.name, tensor.shape, heads=heads, kv_heads=kv_heads))
        if not named:
            architecture = self._file.metadata["general.architecture"]
            raise CheckpointError(
                f"{file.path}: tensor {tensor.name!r} is not known in architecture {architecture!r}; "
                "load the model from its Hugging Face directory"
            )
        for name, view in named.items():
            if name in stored:
                raise CheckpointError(
                    f"{file.path}: tensor {tensor.name!r} stands in another part too; the files are damaged"
                )
            _check_view(file, tensor, view)
            stored[name] = Stored(file, tensor, kind, view)


def _check_view(file: GgufFile, tensor: GgufTensor, view: View) -> None:
    """Raise CheckpointError where a tensor's rows cannot have the order that its family gives them."""
    heads = view.heads if isinstance(view, RotatedInPairs | HeadsTogether) else 0
    if heads and tensor.shape[0] % ((2 if isinstance(view, RotatedInPairs) else 3) * heads):
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name!r} has {tensor.shape[0]} rows, which {heads} heads "
            "of an even size cannot share"
        )
    if isinstance(view, SomeHeads) and tensor.shape[0] % view.heads:
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name!r} has {tensor.shape[0]} rows, which {view.heads} heads cannot share"
        )
    if isinstance(view, Transposed) and len(tensor.shape) != 2:
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, not that of a matrix"
        )


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
