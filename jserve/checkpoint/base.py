"""What a checkpoint offers, whatever its files look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

Index = tuple[slice, ...]
"""A slice for each leading axis; axes left out are read whole."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor.

    `dtype` is the numpy name of what `read` returns ("float32", "bfloat16", ...); `stored` is the file's own
    name for it ("BF16", "Q4_1"), which differs where `read` dequantizes.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    stored: str
    has_blocks: bool = False
    """Whether `read_blocks` of a GGUF file gives the rows as they lie there."""


class Checkpoint(Protocol):
    """An opened model. Any thread may call any method; all but `close` are pure reads."""

    @property
    def path(self) -> Path:
        """What the user named: the directory, or the GGUF file."""

    @property
    def format(self) -> str:
        """ "huggingface" or "gguf"."""

    def config(self) -> dict[str, Any]:
        """The model's configuration in the shape of Hugging Face's `config.json`."""

    def generation_config(self) -> dict[str, Any]:
        """Hugging Face's `generation_config.json`, {} where the model has none."""

    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor under its Hugging Face name."""

    def read(self, name: str, index: Index = ()) -> np.ndarray[Any, Any]:
        """The tensor's values, or the part that `index` selects; only that part's bytes are touched.

        The array is read-only and, where the file stores the values as they are, a view of the mapped file.
        Raises KeyError for a name that `tensors()` does not have.
        """

    def close(self) -> None:
        """Let go of the files. Arrays that `read` returned stay valid."""
