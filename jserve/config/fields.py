"""Checked access to the fields of a model's configuration, an untrusted file. Imports no jax."""

from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError

MOST_LAYERS = 10_000
_COUNTS_OF_LAYERS = {
    "num_hidden_layers", "num_layers", "n_layer", "num_dense_layers", "first_k_dense_replace",
}  # fmt: skip
"""Counts over which readers make lists: one that is damaged must not take all of the memory."""


class Fields:
    """Checked access to a configuration dictionary."""

    def __init__(self, raw: dict[str, Any], source: Path | str) -> None:
        self._raw = raw
        self._source = source

    def get(self, name: str) -> Any:
        return self._raw.get(name)

    def integer(self, name: str, *, default: int | None = None, most: int | None = None) -> int:
        value = self._raw.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._source}: {name} is {value!r} but must be a positive integer")
        most = MOST_LAYERS if name in _COUNTS_OF_LAYERS else most
        if most is not None and value > most:
            raise CheckpointError(f"{self._source}: {name} is {value:,}; at most {most:,} are read")
        return value

    def optional_integer(self, name: str) -> int | None:
        """None where it is missing, null or 0."""
        return self.integer(name) if self._raw.get(name) else None

    def integers(self, name: str) -> set[int]:
        """Whole numbers from 0 on; none where it is missing or null."""
        value = self._raw.get(name) or []
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise self.unlike(name, "a list of numbers from 0 on")
        return set(value)

    def text(self, name: str, *, default: str) -> str:
        value = self._raw.get(name)
        if value is None:
            value = default
        if not isinstance(value, str):
            raise self.unlike(name, "text")
        return value

    def for_each_layer(self, name: str, layers: int) -> list[Any] | None:
        """A list with one entry for each layer; None where it is missing, null or empty."""
        value = self._raw.get(name)
        if not value:
            return None
        if not isinstance(value, list) or len(value) != layers:
            count = f"has {len(value)} entries" if isinstance(value, list) else f"is {value!r}"
            raise self.wrong(name, f"{count} but must be a list of one for each of {layers} layers")
        return list(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id, a list of them or none."""
        value = self._raw.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise self.unlike(name, "a token id or a list of them")
        return tuple(ids)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.unlike(name, "true or false")
        return value

    def dictionary(self, name: str) -> dict[str, Any]:
        """{} where it is missing, null or empty."""
        value = self._raw.get(name) or {}
        if not isinstance(value, dict):
            raise self.unlike(name, "an object")
        return value

    def numbers(self, name: str) -> list[float]:
        """A list of positive numbers."""
        value = self._raw.get(name)
        if not isinstance(value, list | tuple) or not value or not all(_is_positive(item) for item in value):
            raise self.wrong(name, "must be a list of positive numbers")
        return list(value)

    def wrong(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {name} {problem}")

    def number(self, name: str, *, default: float) -> float:
        value = self.optional_number(name)
        return default if value is None else value

    def optional_number(self, name: str) -> float | None:
        value = self._raw.get(name)
        if value is None:
            return None
        if not _is_positive(value):
            raise CheckpointError(f"{self._source}: {name} is {value!r} but must be a positive number")
        return float(value)

    def required_number(self, name: str) -> float:
        value = self.optional_number(name)
        if value is None:
            raise self.unlike(name, "a positive number")
        return value

    def unlike(self, name: str, must_be: str) -> CheckpointError:
        return self.wrong(name, f"is {self._raw.get(name)!r} but must be {must_be}")

    def one_of(self, name: str, allowed: tuple[Any, ...]) -> Any:
        value = self._raw.get(name)
        if value not in allowed:
            raise self.wrong(name, f"is {value!r}; supported are {', '.join(map(str, allowed))}")
        return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
