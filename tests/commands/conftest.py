"""The commands are tried with the API's tiny model folder and its fake engine."""

from tests.api.conftest import (
    _importable_from_subprocesses,
    make_server,
    model_dir,
    start_server,
    tokenizer,
)

__all__ = ["_importable_from_subprocesses", "make_server", "model_dir", "start_server", "tokenizer"]
