"""Every file of `examples/` runs as it is, against a live server."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import _importable_from_subprocesses, make_server, model_dir, tokenizer
from tests.api.live_server import LiveServer, StartServer

__all__ = ["_importable_from_subprocesses", "make_server", "model_dir", "tokenizer"]
FOLDER = Path(__file__).parent.parent / "examples"
OFFLINE = {"offline_batch.py"}
NEEDS = {"langchain_chat.py": "langchain_openai", "ollama_chat.py": "ollama", "anthropic_messages.py": "anthropic"}


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Iterator[LiveServer]:
    server = make_server("--quote-token", "0", max_model_len=1024, served_model_names=("default",))
    yield server
    server.stop()


@pytest.mark.parametrize("name", sorted({path.name for path in FOLDER.glob("*.py")} - OFFLINE))
def test_an_example_runs(name: str, live: LiveServer) -> None:
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    done = run(FOLDER / name, JSERVE_URL=live.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_offline_example_runs(real_gguf: Path) -> None:
    done = run(FOLDER / "offline_batch.py", str(real_gguf))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 8


def run(*command: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *map(str, command)]
    return subprocess.run(argv, env=os.environ | environment, capture_output=True, text=True, check=False)
