"""deploy/Dockerfile and deploy/compose.yaml: what can be seen of them without an engine that builds images."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from jserve.commands.options import parse
from tests.api.live_server import LiveServer, StartServer
from tests.deploy.programs import DEPLOY, ROOT, program, replaced, run

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
EXTRAS = ("cpu", "cuda12", "cuda13")


def instruction(name: str) -> str:
    """The arguments of the only instruction of this name, lines joined."""
    (match,) = re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    return str(match)


def stage(name: str) -> str:
    return DOCKERFILE.partition(f" AS {name}\n")[2].partition("\nFROM ")[0]


@pytest.mark.deploy
def test_hadolint_finds_nothing() -> None:
    assert run(program("hadolint"), str(DEPLOY / "Dockerfile")) == ""


@pytest.mark.deploy
def test_compose_lint_finds_nothing_high(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(re.sub(r"\$\{(\w+):\?[^}]*\}", r"/srv/\1", (DEPLOY / "compose.yaml").read_text()))
    assert "PASS" in run(program("compose-lint"), str(file))


def test_the_wheel_is_built_from_what_is_copied(tmp_path: Path) -> None:
    """And the context holds it: nothing else is let in."""
    let_in = set(re.findall("^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    copied = [words[:-1] for words in map(shlex.split, re.findall("^COPY (.*)$", stage("wheel"), re.MULTILINE))]
    names = [name for sources in copied for name in sources]
    assert set(names) == let_in
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels"), cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with ZipFile(wheel) as archive:
        assert {"jserve/cli.py", "jserve/commands/presets/smollm2-cpu.yaml"} <= set(archive.namelist())


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_target_is_that_extra_and_nobody_special(extra: str) -> None:
    assert f"jserve[{extra}] @" in stage(extra)
    assert stage(extra).strip().endswith("USER 10001:10001")
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


def test_health_is_that_of_ready(start_server: StartServer, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    live = start_server("--load-held-by", str(hold), wait=False, api_keys=("sk-one",))
    live.wait_for(lambda: live.status("/health") == 200)
    assert health(live) != 0
    hold.unlink()
    live.wait_until_ready()
    assert health(live) == 0


def health(live: LiveServer) -> int:
    """The exit status of the image's check."""
    command = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    code = replaced(command[2], ("http://127.0.0.1:8000", live.url))
    return subprocess.run([sys.executable, command[1], code], stderr=subprocess.DEVNULL, check=False).returncode


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def test_the_server_takes_the_command_of_compose(tmp_path: Path) -> None:
    (tmp_path / "api-keys").write_text("sk-one\n")
    words = [re.sub(r"\$\{.*\}", "m", word) for word in compose()["jserve"]["command"]]
    argv = [word.replace("/run/secrets", str(tmp_path)) for word in [*json.loads(instruction("ENTRYPOINT")), *words]]
    config, settings = parse(argv[1:])
    assert (config.model, settings.host, settings.needs_key) == ("/models/m", "127.0.0.1", True)


def test_files_that_compose_mounts_are_there_and_only_the_proxy_is_public() -> None:
    services = compose()
    mounted = [v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if v.startswith("./")]
    assert len(mounted) == 6
    assert all((DEPLOY / path).exists() for path in mounted)
    assert services["pod"]["ports"] == ["80:80", "443:443", "127.0.0.1:9090:9090", "127.0.0.1:3000:3000"]
    assert all(s["network_mode"] == "service:pod" for name, s in services.items() if name != "pod")
