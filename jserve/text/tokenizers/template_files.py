"""Finds the chat templates that a model directory brings, by name; "default" is the one for ordinary chat.

Later places win, as in transformers: `tokenizer_config.json` (a string, or a list of named ones),
`chat_template.json`, `chat_template.jinja`, `additional_chat_templates/NAME.jinja`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jserve.checkpoint.json_file import read_json
from jserve.errors import CheckpointError


def find_chat_templates(directory: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name, {} where there are none."""
    templates = _named(tokenizer_config.get("chat_template"), directory / "tokenizer_config.json")
    processor = directory / "chat_template.json"
    if processor.exists():
        templates |= _named(read_json(processor).get("chat_template"), processor)
    single = directory / "chat_template.jinja"
    if single.exists():
        templates["default"] = read_text(single)
    for file in sorted(directory.glob("additional_chat_templates/*.jinja")):
        templates[file.stem] = read_text(file)
    return templates


def gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Templates of a GGUF file: `tokenizer.chat_template`, and `tokenizer.chat_template.NAME`."""
    prefix = "tokenizer.chat_template"
    templates = {"default": metadata.get(prefix)}
    for key, value in metadata.items():
        if key.startswith(prefix + "."):
            templates[key.removeprefix(prefix + ".")] = value
    return {name: value for name, value in templates.items() if isinstance(value, str)}


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises CheckpointError where it cannot be read as one."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as text: {error}") from None


def _named(value: Any, source: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        raise CheckpointError(
            f"{source}: chat_template must be a string, or a list of objects with name and template"
        ) from None
