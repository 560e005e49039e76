"""`jserve run`, `ps` and `stop` in processes of their own: the server stays, is used again, and is stopped."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.live_server import StartServer, fake_engine

Jserve = Callable[..., subprocess.CompletedProcess[str]]
MAIN = """
import sys
from jserve.commands.client import run
from jserve.cli import main
run.SERVER = (*run.SERVER[:1], "-c", sys.argv[1])
main(sys.argv[2:])
"""
SERVER = """
import sys, msgspec
from jserve.commands import options, serve
parse = options.parse
def with_fake_engine(argv):
    config, settings = parse(argv)
    return config, msgspec.structs.replace(settings, engine_command=tuple({engine!r}))
serve.parse = with_fake_engine
from jserve.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def jserve(tmp_path: Path) -> Jserve:
    """Run a command whose servers have a fake engine, in a state folder of this test; they are stopped after it."""
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}
    server = SERVER.format(engine=fake_engine())

    def run(*argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MAIN, server, *argv]
        return subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)

    yield run
    run("stop", "--all")


def listed(jserve: Jserve) -> list[str]:
    return jserve("ps").stdout.splitlines()[1:]


def test_a_server_is_started_used_again_and_stopped(jserve: Jserve, model_dir: Path) -> None:
    model = str(model_dir)
    first = jserve("run", model, "hello")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    (line,) = listed(jserve)
    pid = line.split()[2]
    second = jserve("run", model, text="hello")
    assert second.stdout == first.stdout
    assert [line.split()[2] for line in listed(jserve)] == [pid]
    assert jserve("stop", "another").returncode == 1
    assert jserve("stop", model).returncode == 0
    assert listed(jserve) == []


def test_one_that_is_for_one_answer_alone_does_not_stay(jserve: Jserve, model_dir: Path) -> None:
    assert jserve("run", str(model_dir), "hello", "--keep-alive", "0").stdout.strip()
    assert listed(jserve) == []


def test_why_a_server_did_not_start_is_told(jserve: Jserve, tmp_path: Path) -> None:
    done = jserve("run", str(tmp_path / "nothing"), "hello")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_a_server_that_nobody_uses_stops_by_itself(make_server: StartServer) -> None:
    make_server(wait=False, exit_when_idle_s=0.2).join()
