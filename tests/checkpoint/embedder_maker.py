"""The files that sentence-transformers puts beside a model."""

import json
from pathlib import Path
from typing import Any


def add_embedder_files(
    folder: Path,
    pooling: dict[str, Any],
    *,
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    **files: dict[str, Any],
) -> Path:
    """`pooling` is that module's configuration; `files` are further ones by name without `.json`."""
    listed = []
    for number, kind in enumerate(modules):
        path = f"{number}_{kind}" if number else ""
        listed.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir(exist_ok=True, parents=True)
        if kind == "Pooling":
            (folder / path / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
