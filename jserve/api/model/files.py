"""What a model's files say of it, without reading its weights: format, size, parameters, quantization.

Read once at the start, since a digest that opens files has no place in a request.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jserve.checkpoint import TensorInfo, open_checkpoint, weight_files

_DIGESTED_BYTES = 1 << 16
"""How much of either end of every file is digested: a header with names and shapes, and values of the last tensor."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`format` is "gguf" or "safetensors". `config` has the shape of Hugging Face's `config.json`.

    `quantization` is the storage type that most parameters have, such as "Q4_K" or "BF16", "" where there are
    no weights (`--load-format dummy`). `num_bytes` and `modified` (Unix time) are of the weights' files.
    `digest` is a SHA-256 in hex over the sizes, the first and the last 64 KiB of these files: the same for
    copies of a model, and cheap; it is not the digest of their whole content.
    """

    format: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    quantization: str
    num_bytes: int
    modified: float
    digest: str

    @classmethod
    def read(cls, path: str, *, has_weights: bool = True, architecture: str | None = None) -> "ModelFiles":
        """Look at headers. Raises CheckpointError where the files are unusable."""
        with closing(open_checkpoint(path, needs_weights=has_weights, architecture=architecture)) as checkpoint:
            tensors = dict(checkpoint.tensors())
            files = weight_files(checkpoint) or [Path(path) / "config.json"]
            stats = [file.stat() for file in files]
            return cls(
                format="gguf" if checkpoint.format == "gguf" else "safetensors",
                config=checkpoint.config(),
                tensors=tensors,
                quantization=_quantization(tensors.values()),
                num_bytes=sum(stat.st_size for stat in stats),
                modified=max(stat.st_mtime for stat in stats),
                digest=_digest(files),
            )

    @property
    def num_parameters(self) -> int:
        """Values in all tensors; tied embeddings count once."""
        return sum(math.prod(info.shape) for info in self.tensors.values())

    @property
    def architecture(self) -> str:
        """The family's name, such as "llama" or "qwen3"."""
        named = self.config.get("model_type") or next(iter(self.config.get("architectures") or ()), "unknown")
        return str(named).removesuffix("ForCausalLM").lower()


def _quantization(tensors: Iterable[TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for info in tensors:
        sizes[info.stored] += math.prod(info.shape)
    return sizes.most_common(1)[0][0] if sizes else ""


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            digest.update(size.to_bytes(8, "little"))
            for start in (0, max(0, size - _DIGESTED_BYTES)):
                stream.seek(start)
                digest.update(stream.read(_DIGESTED_BYTES))
    return digest.hexdigest()
