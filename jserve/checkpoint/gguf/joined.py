"""Tensors of Hugging Face that llama.cpp or Ollama keeps in several, or packed in blocks of their own order.

gpt-oss: gate and up apart where the original has their rows in turn, and MXFP4 blocks, which stay packed. DeepSeek:
what makes keys of latents and what makes values apart. Sources: llama.cpp's converter, and Ollama's for its own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jserve.checkpoint.base import Index
from jserve.checkpoint.gguf.dequantize import MXFP4, MXFP4_PAIRS
from jserve.checkpoint.gguf.stored import Stored
from jserve.errors import CheckpointError

Array = np.ndarray[Any, Any]


class Readable(Protocol):
    """A tensor of Hugging Face's form, any part of which can be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def origin(self) -> Stored:
        """The tensor of the file that it is, or the first of those that it is made of."""

    def read(self, index: Index) -> Array: ...


Join = Callable[[Mapping[str, Stored]], dict[str, Readable]]
"""All tensors of a file, by names of one projection each, as Hugging Face has them."""


@dataclass(frozen=True, slots=True)
class InTurn:
    """Two tensors of one shape whose entries along the second axis come in turn."""

    first: Readable
    second: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.first.shape
        return (size[0], 2 * size[1], *size[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.first.dtype if self.first.dtype == self.second.dtype else np.dtype(np.float32)

    @property
    def origin(self) -> Stored:
        return self.first.origin

    def read(self, index: Index) -> Array:
        outer, rows, *rest = _full(index, self.shape)
        pairs = slice(rows.start // 2, -(-rows.stop // 2))
        parts = [part.read((outer, pairs, *rest)).astype(self.dtype) for part in (self.first, self.second)]
        both = np.stack([_as_known(part) for part in parts], axis=2).view(self.dtype)
        start = rows.start - 2 * pairs.start
        return both.reshape(len(both), -1, *both.shape[3:])[:, start : start + rows.stop - rows.start]


@dataclass(frozen=True, slots=True)
class InputsBeforeOutputs:
    """Matrices of all experts, `[X, outputs, inputs]` in the file, as `[X, inputs, outputs]`."""

    matrices: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        experts, outputs, inputs = self.matrices.shape
        return experts, inputs, outputs

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.matrices.dtype

    @property
    def origin(self) -> Stored:
        return self.matrices.origin

    def read(self, index: Index) -> Array:
        experts, inputs, outputs = _full(index, self.shape)
        return self.matrices.read((experts, outputs, inputs)).swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class Mxfp4Codes:
    """Values of MXFP4 as published: u8[X, outputs, blocks, 16], two neighbours a byte, the lower half first.

    GGML's bytes hold a value of a block's first half and one of its second; Ollama's first files have published ones.
    """

    origin: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, inputs = self.origin.tensor.shape
        return (*rows, inputs // self.origin.kind.values, self.origin.kind.size - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def read(self, index: Index) -> Array:
        *rows, codes = _full(index, self.shape)
        packed = self.origin.blocks()[tuple(rows)][..., 1:]
        if self.origin.kind == MXFP4_PAIRS:
            return packed[..., codes]
        even, odd = packed[..., ::2], packed[..., 1::2]
        low = (even & 0x0F) | (odd << 4)
        high = (even >> 4) | (odd & 0xF0)
        return np.concatenate([low, high], axis=-1)[..., codes]


@dataclass(frozen=True, slots=True)
class Mxfp4Scales:
    """The exponent of each block, u8[X, outputs, blocks]."""

    origin: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return Mxfp4Codes(self.origin).shape[:-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def read(self, index: Index) -> Array:
        return self.origin.blocks()[..., 0][_full(index, self.shape)]


@dataclass(frozen=True, slots=True)
class KeysThenValues:
    """`[H * (key_dim + value_dim), rank]` of keys, `[H, rank, key_dim]`, and values, `[H, value_dim, rank]`."""

    keys: Stored
    values: Stored

    @property
    def _of_head(self) -> int:
        return self.keys.shape[2] + self.values.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        heads, rank, _ = self.keys.shape
        return heads * self._of_head, rank

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.keys.dtype if self.keys.dtype == self.values.dtype else np.dtype(np.float32)

    @property
    def origin(self) -> Stored:
        return self.keys

    def read(self, index: Index) -> Array:
        rows, rank = _full(index, self.shape)
        heads = slice(rows.start // self._of_head, -(-rows.stop // self._of_head))
        keys = self.keys.read((heads, rank)).swapaxes(1, 2)
        values = self.values.read((heads, slice(None), rank))
        parts = [_as_known(part.astype(self.dtype)) for part in (keys, values)]
        whole = np.concatenate(parts, axis=1).view(self.dtype)
        start = rows.start - heads.start * self._of_head
        return whole.reshape(-1, whole.shape[-1])[start : start + rows.stop - rows.start]


def join_latent(stored: Mapping[str, Stored]) -> dict[str, Readable]:
    """DeepSeek's attention. Where a file has the whole tensor too, that counts."""
    tensors_by_name: dict[str, Readable] = {}
    for name, tensor in stored.items():
        whole = name.replace(".k_b_proj.", ".kv_b_proj.").replace(".v_b_proj.", ".kv_b_proj.")
        if whole == name:
            tensors_by_name[name] = tensor
        elif whole not in stored and ".k_b_proj." in name:
            values = stored.get(name.replace(".k_b_proj.", ".v_b_proj."))
            if values is None or not _fit(tensor.shape, values.shape):
                raise _unlike(tensor, "attn_v_b", values)
            tensors_by_name[whole] = KeysThenValues(tensor, values)
    return tensors_by_name


def _fit(keys: tuple[int, ...], values: tuple[int, ...]) -> bool:
    return len(keys) == len(values) == 3 and keys[:2] == (values[0], values[2])


def join_experts(stored: Mapping[str, Stored]) -> dict[str, Readable]:
    """gpt-oss: weights and biases of all experts of a layer, the gate's and up's rows in turn."""
    readables: dict[str, Readable] = {}
    for name, tensor in stored.items():
        _, _, part = name.partition(".mlp.experts.")
        projection, _, suffix = part.partition(".")
        if not part:
            readables[name] = tensor
            continue
        stem = name.removesuffix(f".{suffix}")
        if projection == "gate_proj":
            up = stored.get(name.replace(".gate_proj.", ".up_proj."))
            if up is None or up.shape != tensor.shape:
                raise _unlike(tensor, "ffn_up_exps", up)
            readables |= _all_experts(stem.replace(".gate_proj", ".gate_up_proj"), suffix, tensor, up)
        elif projection != "up_proj":
            readables |= _all_experts(stem, suffix, tensor)
    return readables


def _all_experts(stem: str, suffix: str, *parts: Stored) -> dict[str, Readable]:
    """Under the published names, of one tensor or of two whose rows are taken in turn."""
    rank = 2 if suffix == "bias" else 3
    if any(len(part.shape) != rank for part in parts):
        raise CheckpointError(
            f"{parts[0].file.path}: tensor {parts[0].tensor.name!r} has shape {list(parts[0].shape)}, not that of all "
            "experts; the file is damaged"
        )

    def in_turn(planes: list[Readable]) -> Readable:
        return planes[0] if len(planes) == 1 else InTurn(*planes)

    if suffix == "bias":
        return {f"{stem}_bias": in_turn(list(parts))}
    if all(part.kind in (MXFP4, MXFP4_PAIRS) for part in parts):
        return {
            f"{stem}_blocks": in_turn([Mxfp4Codes(part) for part in parts]),
            f"{stem}_scales": in_turn([Mxfp4Scales(part) for part in parts]),
        }
    return {stem: InputsBeforeOutputs(in_turn(list(parts)))}


def _unlike(tensor: Stored, partner: str, partner_tensor: Stored | None) -> CheckpointError:
    is_there = "is missing" if partner_tensor is None else f"has shape {list(partner_tensor.tensor.shape)}"
    return CheckpointError(
        f"{tensor.file.path}: tensor {tensor.tensor.name!r} has shape {list(tensor.tensor.shape)}, but {partner}, "
        f"which belongs to it, {is_there}; the file is damaged"
    )


def _full(index: Index, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A slice with bounds for every axis."""
    whole = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = (part.indices(size) for part, size in zip(whole, shape, strict=True))
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def _as_known(data: Array) -> Array:
    """bfloat16 as integers: numpy copies types of others one by one."""
    return data if data.dtype.isbuiltin == 1 else data.view(f"u{data.dtype.itemsize}")
