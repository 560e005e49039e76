"""JSON from a model's directory. Needs no numpy, so the API process reads configurations with it."""

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from jserve.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20
"""Largest file that is read. The index of a model of a trillion parameters has some 30 MB; parsed, it grows tenfold."""
_LFS = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object that the file holds. Raises CheckpointError where there is none."""
    parsed = parse_json(read_bounded(path, limit), path)
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds a JSON {type(parsed).__name__} but must hold an object")
    return parsed


def parse_json(text: bytes, path: Path) -> Any:
    """The value. Raises CheckpointError, naming the file, where it is not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def check_regular(path: Path) -> None:
    """Raise OSError where reading could wait for ever: a pipe or a device is no file of a model."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError("it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file")


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raise CheckpointError where the file stands for another one, as a clone without Git LFS leaves it."""
    if beginning.startswith(_LFS):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`, or download the "
            "model again"
        )


def read_bounded(path: Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises CheckpointError where it cannot be read or is larger."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
        refuse_pointer(path, content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; --model takes a directory in Hugging Face format or a .gguf file"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise CheckpointError(f"{path} is larger than {limit:,} bytes, which no such file of a model is")
    return content
