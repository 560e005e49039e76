"""The server, as the command starts it, under each attack: its memory is bounded and a neighbour is served."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import model_dir, tokenizer  # noqa: F401
from tests.api.http.raw_connection import RawConnection
from tests.api.live_server import ROOT, fake_engine
from tests.hostile.target import Target
from tests.patience import wait_until

ATTACKS = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "target", "test_attacks")
)
_FEW_DESCRIPTORS = 256


@pytest.fixture(scope="module")
def target(model_dir: Path) -> Iterator[Target]:  # noqa: F811
    """A server with a model of bytes and an engine that computes nothing, and few descriptors."""
    command = [
        sys.executable, "-m", "jserve", "--model", str(model_dir), "--port", "0", "--max-model-len", "4096",
        "--engine-command", " ".join(fake_engine("--step-ms", "2", "--max-num-seqs", "256")),
    ]  # fmt: skip
    limited = ["bash", "-c", f'ulimit -n {_FEW_DESCRIPTORS}; exec "$@"', "jserve", *command]
    process = subprocess.Popen(
        limited, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if "ready: http" in line:
                url = line.partition("ready: ")[2].split()[0]
                break
        assert url, "the server did not start"
        rest = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # Nobody else empties it.
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        yield Target(url, process.pid)
        assert process.poll() is None, "it has ended"
        process.terminate()
        process.wait(60)
        rest.wait(60)
    finally:
        process.kill()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_server_and_a_neighbour_bear_it(target: Target, name: str) -> None:
    importlib.import_module(f"tests.hostile.{name}").attack(target).check()


def test_the_engine_is_started_again_while_clients_hold_all_that_they_may(target: Target) -> None:
    with ExitStack() as opened:
        for _ in range(2 * _FEW_DESCRIPTORS):
            with suppress(OSError):
                opened.enter_context(RawConnection(target.url))
        engine = _engine_of(target)
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: _engine_of(target) not in (0, engine))
    wait_until(lambda: _is_ready(target))
    assert target.neighbour() == 200


def _engine_of(target: Target) -> int:
    children = subprocess.run(["pgrep", "-f", "-P", str(target.pid), "fake_engine"], capture_output=True, check=False)
    return int(children.stdout.split()[0]) if children.stdout.split() else 0


def _is_ready(target: Target) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{target.url}/ready").status_code == 200
    return False
