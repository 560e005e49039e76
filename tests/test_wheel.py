"""The wheel: it says what the project is, holds what the server needs, and serves once it is installed elsewhere."""

import ast
import os
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from benchmarks.tiny_model import write_tiny_model
from jserve.version import __version__
from tests.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parent.parent
PAGES = "https://github.com/jserve/jserve/"
LINK = re.compile(r"\]\(([^)]+)\)")
START_LIMIT_S = 300.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"jserve-{__version__}.dist-info/METADATA").decode())


def test_the_version_is_that_of_the_package_alone(metadata: Message) -> None:
    assert metadata["Version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_presets_types_and_every_module_are_inside(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    files = [*(ROOT / "jserve").rglob("*"), *(ROOT / "pallas_kernels").rglob("*")]
    wanted = {str(file.relative_to(ROOT)) for file in files if file.is_file() and "__pycache__" not in file.parts}
    presets = {f"jserve/commands/presets/{file.name}" for file in (ROOT / "configs").glob("*.yaml")}
    assert {"jserve/py.typed", "pallas_kernels/py.typed"} <= wanted
    assert presets
    assert wanted | presets <= inside


def test_links_of_the_readme_work_where_there_is_no_repository(metadata: Message) -> None:
    links = LINK.findall(str(metadata.get_payload()))
    assert len(links) > 10
    for link in links:
        assert link.startswith(f"{PAGES}blob/main/"), link
        assert (ROOT / link.removeprefix(f"{PAGES}blob/main/")).exists(), link


def test_what_is_imported_is_declared(metadata: Message) -> None:
    """Directly: what some other package happens to bring is not declared."""
    declared = {
        re.split(r"[\s<>=!;\[]", line)[0].lower().replace("_", "-")
        for line in metadata.get_all("Requires-Dist") or ()
        if "extra ==" not in line or re.search(r"extra == .(cpu|otel|bench|cuda12|cuda13)", line)
    }
    distributions = packages_distributions()
    undeclared = {
        module
        for module in imported_modules()
        if not {name.lower().replace("_", "-") for name in distributions.get(module, ())} & declared
    }
    assert undeclared <= {"jserve", "pallas_kernels", *NOT_DECLARED}


NOT_DECLARED = {"jaxlib", "llvmlite", "pydantic_core"}
"""jax, Numba and pydantic are made for exactly one version of these, and bring it."""


def imported_modules() -> set[str]:
    """The first names of all absolute imports of the package, without the standard library."""
    names = set()
    for file in [*(ROOT / "jserve").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names


def test_an_installed_wheel_answers_a_chat(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has nothing but the wheel, and reads its dependencies where this one has them."""
    environment = new_environment(tmp_path / "environment")
    uv(environment, "--no-deps", "--offline", str(wheel))
    site = next((environment / "lib").glob("python*/site-packages"))
    # Files .pth of a folder that is only on the path are not read, so an editable jserve there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert answers_a_chat(environment, tmp_path)


@pytest.mark.slow
def test_a_wheel_brings_all_that_a_chat_needs(wheel: Path, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "environment")
    uv(environment, f"{wheel}[cpu]")
    assert answers_a_chat(environment, tmp_path)


def new_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


def uv(environment: Path, *arguments: str) -> None:
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(environment / "bin" / "python")]
    subprocess.run([*install, *arguments], check=True)


def answers_a_chat(environment: Path, folder: Path) -> bool:
    """Serve a tiny model with the environment's command, from a folder that is not the repository's."""
    write_tiny_model(folder / "model")
    with served(environment, folder) as url:
        model = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
    return bool(answer["choices"][0]["message"]["content"]) and answer["usage"]["completion_tokens"] == 4


@contextmanager
def served(environment: Path, folder: Path) -> Iterator[str]:
    """The URL of a server that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(environment / "bin" / "jserve"), "--model", str(folder / "model"), "--port", str(port)]
    command += ["--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--max-model-len", "128"]
    command += ["--kv-cache-memory-bytes", "16MiB", "--compile-cache-dir", str(folder / "executables")]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # a program takes longer to optimize than to run here
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=folder, env=clean) as process:
        try:
            wait_until(lambda: is_ready(url) or process.poll() is not None, START_LIMIT_S)
            assert process.poll() is None, f"the server ended with {process.returncode}"
            yield url
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False
