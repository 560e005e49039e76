"""One server with the real model, for all clients."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import LiveServer, free_port, wait_until_ready
from tests.api.conftest import (  # Servers with an engine that says what it is told to.
    _importable_from_subprocesses,
    make_server,
    model_dir,
    server,
    tokenizer,
)
from tests.patience import PATIENCE_S

__all__ = ["_importable_from_subprocesses", "make_server", "model_dir", "server", "tokenizer"]

NAME = "smollm2"


@pytest.fixture(scope="session")
def live(real_gguf: Path, executables: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server as a user starts it, whose model is called "smollm2"."""
    port = free_port()
    command = [sys.executable, "-m", "jserve", "--model", str(real_gguf), "--served-model-name", NAME]
    command += ["--port", str(port), "--compile-cache-dir", executables, "--max-model-len", "4096"]
    log = tmp_path_factory.mktemp("clients") / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=os.environ)
    server = LiveServer(f"http://127.0.0.1:{port}", process)
    wait_until_ready(server, str(log))
    yield server
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
