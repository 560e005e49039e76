"""Servers with a fake engine, for the proxies and the scrapers that stand in front of them."""

from tests.api.conftest import (  # noqa: F401
    _importable_from_subprocesses,
    make_server,
    model_dir,
    server,
    start_server,
    tokenizer,
)
