"""deploy/systemd: systemd takes the unit, and the server takes the command that it runs."""

import configparser
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from jserve.commands.options import parse
from tests.deploy.programs import DEPLOY, program, replaced, run

FOLDER = DEPLOY / "systemd"
UNIT = FOLDER / "jserve.service"
OLDEST = 250
MOST_EXPOSED = 40
"""Tenths on the scale of `systemd-analyze security`, where 100 is a service without any protection."""


def settings() -> dict[str, str]:
    """The settings of [Service]; of those that stand there twice, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


@pytest.fixture
def analyze() -> str:
    """systemd-analyze of a systemd that knows all of the unit."""
    path = program("systemd-analyze")
    version = int(run(path, "--version").split()[1])
    if version < OLDEST:
        pytest.skip(f"systemd-analyze is {version}; the unit needs {OLDEST}")
    return path


@pytest.mark.deploy
def test_systemd_takes_the_unit(analyze: str, tmp_path: Path) -> None:
    """Its program is another one here, since this machine has no /opt/jserve."""
    unit = tmp_path / UNIT.name
    unit.write_text(replaced(UNIT.read_text(), ("/opt/jserve/bin/jserve", sys.executable)))
    output = run(analyze, "verify", "--man=no", str(unit))
    assert str(unit) not in output, output
    assert "jserve.service" not in output, output


@pytest.mark.deploy
def test_the_service_is_shut_in(analyze: str) -> None:
    command = [analyze, "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED}"]
    assert "exposure level" in run(*command, str(UNIT))


def test_the_server_takes_the_command_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "api-keys").write_text("sk-one\n")
    command = replaced(
        settings()["ExecStart"], ("%d", str(tmp_path)), ("%C", str(tmp_path)), ("/etc/jserve", str(FOLDER))
    )
    _, *argv = shlex.split(command)
    config, server = parse(argv)
    written = yaml.safe_load((FOLDER / "config.yaml").read_text())
    assert (config.model, server.model_names) == (written["model"], tuple(written["served-model-name"]))
    assert server.needs_key
    assert server.metrics_without_key
    assert server.host == "127.0.0.1"
    assert server.log_format == "json"
    assert server.shutdown_timeout_s < float(settings()["TimeoutStopSec"])


def test_the_unit_waits_for_what_the_server_says() -> None:
    assert settings()["Type"] == "notify"
    assert not re.search("%[^dC]", settings()["ExecStart"])
    assert settings()["KillMode"] == "mixed", "the engine would be ended before open requests are done"
