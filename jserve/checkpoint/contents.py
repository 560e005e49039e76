"""What a model's files hold, as far as headers tell: for `jserve inspect`, supported or not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (numpy then knows bfloat16 by name)
import numpy as np

from jserve.checkpoint import TensorInfo, find_gguf, open_checkpoint, weight_files
from jserve.checkpoint.gguf.dequantize import block_type
from jserve.checkpoint.gguf.file import GgufFile
from jserve.checkpoint.safetensors_file import DTYPES
from jserve.errors import CheckpointError

_OF_GROUPS = (".scale", ".zero", ".group_index", ".input_scale")
"""Arrays of a quantized weight beside its values, as `jserve convert` names them."""


@dataclass(frozen=True, slots=True)
class StoredAs:
    """All tensors of one storage type. `num_bytes` is 0 where the type is not known."""

    type: str
    num_tensors: int
    num_parameters: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """`config` has the names of Hugging Face's `config.json`; of a GGUF file that is not supported, none.

    `problem` says why the files cannot be read as a model, None where they can: whether it then runs is for the
    model family to say.
    """

    path: str
    format: str
    architecture: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    stored: tuple[StoredAs, ...]
    problem: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def num_parameters(self) -> int:
        return sum(kind.num_parameters for kind in self.stored)


def read_contents(path: str) -> Contents:
    """Look at headers. Raises CheckpointError only where the files are missing or damaged beyond a look."""
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as problem:
        gguf = find_gguf(path)
        if gguf is None:
            return _without_weights(path, problem)
        return _unsupported_gguf(path, gguf, problem)
    with closing(checkpoint):
        config, tensors = checkpoint.config(), checkpoint.tensors()
        return Contents(
            path=path,
            format={"gguf": "GGUF", "converted": "Orbax (jserve convert)"}.get(checkpoint.format, "safetensors"),
            architecture=str((config.get("architectures") or ["(none)"])[0]),
            config=config,
            files=tuple(weight_files(checkpoint)),
            stored=_stored_as(
                (info.stored, _parameters_in(name, info), _size_of(info)) for name, info in tensors.items()
            ),
            notes=_quantization_note(config),
        )


def _without_weights(path: str, problem: CheckpointError) -> Contents:
    """A directory whose configuration can be read though its weights cannot."""
    try:
        with closing(open_checkpoint(path, needs_weights=False)) as checkpoint:
            config = checkpoint.config()
    except CheckpointError:
        raise problem from None
    name = str((config.get("architectures") or ["(none)"])[0])
    return Contents(path, "safetensors", name, config, (), (), str(problem), _quantization_note(config))


def _unsupported_gguf(path: str, gguf: Path, problem: CheckpointError) -> Contents:
    """The container as such; raises the problem itself where even that is damaged."""
    with suppress(CheckpointError), closing(GgufFile(gguf)) as file:
        rows = []
        for tensor in file.tensors.values():
            kind, count = block_type(tensor.type_id), math.prod(tensor.shape)
            known = kind is not None and count % kind.values == 0
            size = count // kind.values * kind.size if known and kind is not None else 0
            rows.append((kind.name if kind is not None else f"type {tensor.type_id}", count, size))
        architecture = str(file.metadata.get("general.architecture"))
        return Contents(path, "GGUF", architecture, {}, (gguf,), _stored_as(rows), str(problem))
    raise problem


def _stored_as(rows: Iterable[tuple[str, int, int]]) -> tuple[StoredAs, ...]:
    """Totals of (type, parameters, bytes) by type, the largest first."""
    totals: dict[str, list[int]] = {}
    for kind, parameters, size in rows:
        total = totals.setdefault(kind, [0, 0, 0])
        for column, value in enumerate((1, parameters, size)):
            total[column] += value
    kinds = [StoredAs(kind, *total) for kind, total in totals.items()]
    return tuple(sorted(kinds, key=lambda kind: -kind.num_parameters))


def _parameters_in(name: str, info: TensorInfo) -> int:
    """Weights that a tensor holds. Of MXFP4, and of what `jserve convert` wrote, a byte has two of 4 bits, and what
    belongs to groups of them is none.
    """
    count, in_bytes = math.prod(info.shape), info.dtype == "uint8"
    if name.endswith(_OF_GROUPS) or (in_bytes and name.endswith("_scales")):
        return 0
    return 2 * count if in_bytes and name.endswith((".values", "_blocks")) else count


def _size_of(info: TensorInfo) -> int:
    count = math.prod(info.shape)
    if info.dtype == "uint8":  # also of a GGUF file's blocks that stay as they are
        return count
    if info.stored in DTYPES:
        return count * DTYPES[info.stored].itemsize
    if info.stored == info.dtype:  # of `jserve convert`
        return count * np.dtype(info.dtype).itemsize
    from gguf import GGMLQuantizationType

    kind = block_type(GGMLQuantizationType[info.stored].value)
    return 0 if kind is None else count // kind.values * kind.size


def _quantization_note(config: Mapping[str, Any]) -> dict[str, str]:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return {}
    method = quantization.get("quant_method", "unknown")
    details = [f"{quantization['bits']} bits" for _ in (0,) if "bits" in quantization]
    return {"quantization": ", ".join([str(method), *details])}
