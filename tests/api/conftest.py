"""A tiny model folder with a tokenizer made here, and servers for it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from tests.api.live_server import MAX_MODEL_LEN, ROOT, LiveServer, StartServer, fake_engine
from tests.api.tiny_model import byte_tokenizer, write_model
from tests.patience import PATIENCE_S


@pytest.fixture(scope="session", autouse=True)
def _importable_from_subprocesses() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny-model"), tokenizer)


@pytest.fixture(scope="session")
def make_server(model_dir: Path) -> StartServer:
    """Start a server; keyword arguments are settings, and `max_model_len`. The caller stops it."""

    def start(*engine_options: str, wait: bool = True, **settings: Any) -> LiveServer:
        length = settings.pop("max_model_len", MAX_MODEL_LEN)
        fields = {"model": str(model_dir), "served_model_names": ("tiny", "other"), "shutdown_timeout_s": 30.0}
        fields |= {"grammar_compile_timeout_s": PATIENCE_S / 2, "receive_timeout_s": PATIENCE_S}
        live = LiveServer(
            ServerSettings(engine_command=fake_engine(*engine_options), **(fields | settings)),
            EngineConfig(model=str(model_dir), max_model_len=length),
        )
        if wait:
            live.wait_until_ready()
        return live

    return start


@pytest.fixture(scope="session")
def server(make_server: StartServer) -> Iterator[LiveServer]:
    """A server with a fast engine, shared by all tests that leave it as it was."""
    live = make_server()
    yield live
    live.stop()


@pytest.fixture
def start_server(make_server: StartServer) -> Iterator[StartServer]:
    """Like `make_server`; what a test starts is stopped after it."""
    started: list[LiveServer] = []

    def start(*engine_options: str, **settings: Any) -> LiveServer:
        started.append(make_server(*engine_options, **settings))
        return started[-1]

    yield start
    for live in started:
        live.stop()
