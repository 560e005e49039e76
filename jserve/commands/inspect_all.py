"""`jserve inspect --all`: every model in a folder, or in Ollama's store, with whether it runs and if not why."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from jserve.checkpoint import is_model_folder, is_ollama_name, pulled_ollama_models
from jserve.checkpoint.gguf.split import without_later_parts
from jserve.commands.inspect import inspect
from jserve.commands.sizes import shown_size
from jserve.commands.tables import print_table
from jserve.config import EngineConfig
from jserve.errors import ConfigError, StartupError


class Listed(msgspec.Struct, frozen=True):
    """One line of the list. `problem` is None where the model runs."""

    model: str
    architecture: str
    bytes: int
    runs: bool
    problem: str | None


def models_in(path: str) -> list[str]:
    """What `--model` would be told for each model below a folder, or in Ollama's store for `ollama:`, in order.

    Raises ConfigError where there is no such folder.
    """
    if is_ollama_name(path):
        return pulled_ollama_models()
    if not Path(path).is_dir():
        raise ConfigError(f"{path} is no folder; --all takes one that holds models, or ollama: for Ollama's store")
    return sorted(map(str, _below(Path(path))))


def _below(folder: Path) -> Iterator[Path]:
    """Folders and files that are models. A model's own folders are not looked into."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        yield from without_later_parts(sorted(here / file for file in files if file.endswith(".gguf")))
        if is_model_folder(here):
            yield here
            folders.clear()


def list_all(engine_config: EngineConfig, device: str) -> list[Listed]:
    """Look at each model's headers, and plan a start."""
    return [_listed(model, engine_config, device) for model in models_in(engine_config.model)]


def _listed(model: str, engine_config: EngineConfig, device: str) -> Listed:
    try:
        seen = inspect(msgspec.structs.replace(engine_config, model=model), device)
    except ConfigError:
        raise  # of the command line, not of the model
    except StartupError as problem:
        return Listed(model, "", 0, runs=False, problem=str(problem))
    return Listed(model, seen.architecture, seen.bytes, seen.runs, seen.problem)


def to_json(listed: Sequence[Listed]) -> str:
    """One JSON array, for scripts."""
    return msgspec.json.format(msgspec.json.encode(listed), indent=2).decode()


def print_list(listed: Sequence[Listed]) -> None:
    """The same for a person, on standard output."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("model", "architecture", "size", "runs"):
        table.add_column(title, overflow="fold")
    for each in listed:
        size = shown_size(each.bytes) if each.bytes else ""
        table.add_row(each.model, each.architecture, size, "yes" if each.runs else f"no: {each.problem}")
    print_table(table)
    print(f"{sum(each.runs for each in listed):,} of {len(listed):,} models run")
