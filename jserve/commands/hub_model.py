"""Models that a command line names as the hub does: their files are on this machine before anything else begins."""

import argparse
from typing import Any

import msgspec

from jserve.api.settings import ServerSettings
from jserve.checkpoint.hub import fetch, is_hub_name
from jserve.config import EngineConfig

MODEL_HELP = (
    "folder in Hugging Face format, GGUF file, ollama:NAME, or a name on the hub: ORG/NAME, hf.co/ORG/NAME:Q4_K_M"
)


def add_hub_options(parser: Any) -> None:
    """Add what is about names on the hub to a parser or a group of it."""
    parser.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of a model on the hub (default: its main branch)"
    )
    parser.add_argument(
        "--download-dir",
        metavar="DIR",
        help="where models of the hub are kept (default: HF_HOME's cache, which other programs share)",
    )


def local_path(options: argparse.Namespace, model: str) -> str:
    """The path of a model, fetched where it is a name on the hub. Raises CheckpointError where it cannot be."""
    return _local(model, options.revision, options.download_dir)


def with_local_files(config: EngineConfig, settings: ServerSettings) -> tuple[EngineConfig, ServerSettings]:
    """The same server with the path of its model's files. The name on the hub is what requests call it, unless
    `--served-model-name` says otherwise. Raises CheckpointError where it cannot be fetched.
    """
    model = settings.model
    path = _local(model, settings.revision, settings.download_dir)
    if path == model:
        return config, settings
    names = settings.served_model_names or (model,)
    return (
        msgspec.structs.replace(config, model=path),
        msgspec.structs.replace(settings, model=path, served_model_names=names),
    )


def _local(model: str, revision: str | None, folder: str | None) -> str:
    return str(fetch(model, revision=revision, folder=folder)) if is_hub_name(model) else model
