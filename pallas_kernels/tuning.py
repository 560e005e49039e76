"""Tiles that were measured on one kind of GPU, in place of those that a kernel chooses from shapes alone.

A table is a file of `tuned/`, named by the kind of device and written by `python -m benchmarks.tune`; nothing is
measured while serving. Where there is no table, or it does not name the kernel and key, the kernel's own choice stays.
An entry of `paged_prefill_mosaic` says too that this kernel is the faster one: without it Triton's runs.
No table has been measured yet.
"""

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["FOLDER", "TuningError", "read_table", "table_path", "tuned"]

FOLDER = Path(__file__).parent / "tuned"
LARGEST = 1024
Table = Mapping[str, Mapping[str, Mapping[str, int]]]
"""By kernel and by key the fields that replace those of the kernel's own choice."""
Choice = TypeVar("Choice")


class TuningError(ValueError):
    """A table that cannot be used; the message names the file and what is wrong with it."""


def tuned(kind: str, kernel: str, key: str, default: Choice) -> Choice:
    """`default`, a frozen dataclass of integers, with what the table of this kind of device says in its place.

    kind: as jax calls it, such as "NVIDIA H200"; empty for none. key: what the choice hangs on, as text.
    Raises TuningError where the table is malformed or names a field that the choice does not have.
    """
    values = lookup(kind, kernel, key, default)
    return dataclasses.replace(default, **values) if values else default  # type: ignore[type-var]


def lookup(kind: str, kernel: str, key: str, default: Any) -> Mapping[str, int]:
    """The fields that the table has for this key; empty for none. `benchmarks.tune` puts its candidates here."""
    if not kind:
        return {}
    path = table_path(kind)
    values = read_table(path, kind).get(kernel, {}).get(key, {})
    names = [field.name for field in dataclasses.fields(default)]
    for name in values:
        if name not in names:
            raise TuningError(f"{path}: {kernel} {key!r} has a field {name!r}; it may have {', '.join(names)}")
    return values


def table_path(kind: str) -> Path:
    """Where the table of a kind of device lies, or would: `nvidia-h200.toml` for "NVIDIA H200"."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.toml"


@functools.cache
def read_table(path: Path, kind: str) -> Table:
    """A table from its file, empty where there is none. Raises TuningError saying what is wrong with it."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TuningError(f"{path} is no table of tiles: {error}; write it again with benchmarks.tune") from error
    if raw.pop("device", None) != kind:
        raise TuningError(f"{path} is not for this device: it must say device = {kind!r}")
    raw.pop("jax", None)
    for kernel, keys in raw.items():
        for key, values in keys.items() if isinstance(keys, dict) else [("", None)]:
            if not isinstance(values, dict) or not all(map(_is_size, values.values())):
                raise TuningError(
                    f"{path}: {kernel} {key!r} must be fields with whole numbers from 1 to {LARGEST}, not {values}"
                )
    return raw


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST
