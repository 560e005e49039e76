"""Clients that come from npm: installed when a test needs them. Where they cannot be, the test is skipped by name."""

import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL_S = 600


def npm_install(folder: Path, *packages: str) -> Path:
    """The folder of the installed packages' executables. Skips the test where there is no npm or no registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{', '.join(packages)} need npm, which this machine does not have")
    (folder / "package.json").write_text('{"name": "clients", "private": true, "type": "module"}')
    command = [npm, "install", "--no-audit", "--no-fund", *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode:
        pytest.skip(f"npm could not install {', '.join(packages)}: {done.stderr[-300:]}")
    return folder / "node_modules" / ".bin"
