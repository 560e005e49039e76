"""Checked access to a GGUF file's metadata.

A number that llama.cpp stores as float32 comes back as the shortest decimal that rounds to it (1e-05, not
9.999999747378752e-06), as it was in the original.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError


class Keys:
    """Checked access to the metadata of the file's own architecture."""

    def __init__(self, metadata: Mapping[str, Any], source: Path) -> None:
        self.metadata = metadata
        self.source = source
        self.architecture: str = metadata["general.architecture"]

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def count(self, name: str) -> int:
        """A number that may be 0, as it is where the key is missing."""
        return self.integer(name) if self.get(name, 0) != 0 else 0

    def integer(self, name: str, *, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # some converters write one number for each layer
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "must be a positive integer")
        return value

    def largest(self, name: str, *, default: int | None = None) -> int:
        """A number, or the largest of a list with one for each layer."""
        value = self.get(name)
        if not isinstance(value, list):
            return self.integer(name, default=default)
        if not value or any(type(item) is not int or item < 1 for item in value):
            raise self.wrong(name, "must be a list of positive integers")
        return int(max(value))

    def decimal(self, name: str, *, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(name, "must be a positive number")
        return shortest_decimal(value)

    def wrong(self, name: str, need: str) -> CheckpointError:
        value = self.get(name)
        shown = f"{value[:4]}..." if isinstance(value, list) else repr(value)
        return CheckpointError(f"{self.source}: metadata key {self.architecture}.{name} is {shown} but {need}")


def shortest_decimal(value: float) -> float:
    """The number with the fewest digits that is the same float32."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
