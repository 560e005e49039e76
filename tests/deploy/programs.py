"""The programs that the deployment files are for: where they are, and a test is skipped where one is missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str) -> str:
    """The path of a program of the system or of this virtual environment. Skips the test where there is none."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{name} is not installed; docs/deploy.md says which package has it")
    return path


def run(*command: str, cwd: Path | None = None) -> str:
    """The whole output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """`text` with each change made; what is to be changed must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text
