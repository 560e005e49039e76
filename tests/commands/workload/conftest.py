"""The servers of the API's tests: they are what is recorded."""

from tests.api.conftest import _importable_from_subprocesses, make_server, model_dir, server, tokenizer

__all__ = ["_importable_from_subprocesses", "make_server", "model_dir", "server", "tokenizer"]
