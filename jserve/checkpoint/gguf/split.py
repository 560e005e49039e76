"""GGUF files in parts, NAME-00001-of-00003.gguf: any part stands for all of them.

The first part has the metadata, and every part says which it is (`split.no`, from 0) and of how many
(`split.count`). Source: llama_split_path in llama.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

from jserve.checkpoint.gguf.file import GgufFile
from jserve.errors import CheckpointError

MAX_PARTS = 4096
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def first_part(path: Path) -> Path:
    """The first part of the file that `path` is a part of; any other file itself."""
    match = _NAME.fullmatch(path.name)
    if match is None or match["number"] == "00001":
        return path
    first = path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf")
    if not first.is_file():
        raise CheckpointError(f"{path} is part {int(match['number'])} of {int(match['count'])}, and {first} is missing")
    return first


def without_later_parts(files: list[Path]) -> list[Path]:
    """Files of a directory, of split ones the first part alone."""
    matches = [(file, _NAME.fullmatch(file.name)) for file in files]
    return [file for file, match in matches if match is None or match["number"] == "00001"]


def open_other_parts(first: GgufFile) -> list[GgufFile]:
    """All parts but the first, opened. Raises CheckpointError where one is missing, or is another file's."""
    count = first.metadata.get("split.count", 0)
    if count in (0, 1):
        return []
    match = _NAME.fullmatch(first.path.name)
    if not isinstance(count, int) or not 0 < count <= MAX_PARTS:
        raise CheckpointError(f"{first.path}: split.count is {count!r} but a file has at most {MAX_PARTS} parts")
    if match is None or int(match["count"]) != count:
        raise CheckpointError(
            f"{first.path} is the first of {count} parts, which are found by their names; give them the names that "
            f"they came with, such as {first.path.stem}-00001-of-{count:05}.gguf"
        )
    _check(first, 0, count)
    parts: list[GgufFile] = []
    try:
        for number in range(1, count):
            path = first.path.with_name(f"{match['stem']}-{number + 1:05}-of-{count:05}.gguf")
            if not path.is_file():
                raise CheckpointError(f"{path} is missing: {first.path} has {count} parts; fetch the others too")
            parts.append(GgufFile(path))
            _check(parts[-1], number, count)
        _check_tensors(first, parts)
    except BaseException:
        for part in parts:
            part.close()
        raise
    return parts


def _check(part: GgufFile, number: int, count: int) -> None:
    said = (part.metadata.get("split.no"), part.metadata.get("split.count"))
    if said != (number, count):
        raise CheckpointError(
            f"{part.path} says that it is part {said[0]!r} of {said[1]!r}, counted from 0, but its name that it is "
            f"{number} of {count}; fetch it again"
        )


def _check_tensors(first: GgufFile, parts: list[GgufFile]) -> None:
    count, said = sum(len(part.tensors) for part in (first, *parts)), first.metadata.get("split.tensors.count")
    if isinstance(said, int) and said != count:
        raise CheckpointError(
            f"{first.path} says {said} tensors but its {len(parts) + 1} parts have {count}; fetch them again"
        )
