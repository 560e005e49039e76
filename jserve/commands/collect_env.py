"""`jserve collect-env`: what a report of a fault needs to say about the machine and the versions. Holds no secrets."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jserve.commands.parser import Parser
from jserve.version import __version__

_PACKAGES = (
    "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "numpy", "numba", "transformers", "tokenizers",
    "huggingface-hub", "safetensors", "gguf", "llguidance", "fastapi", "starlette", "uvicorn", "uvloop", "httptools",
    "pydantic", "msgspec",
)  # fmt: skip
_PREFIXES = ("JAX_", "XLA_", "CUDA_", "NVIDIA_", "HF_", "OLLAMA_", "JSERVE_", "OMP_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "sve")
_PATIENCE_S = 20


def run(argv: Sequence[str]) -> None:
    """Print it as lines, or as one JSON object."""
    parser = Parser(prog="jserve collect-env", description="Describe this machine and the versions, for a report.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(argv))
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [f"{key} {item}" for key, item in value.items()]
        print(f"{name}:", *(f"  {line}" for line in lines), sep="\n")


def collect() -> dict[str, list[str] | dict[str, str]]:
    """The facts, by kind."""
    return {
        "jserve": [__version__, f"Python {platform.python_version()} at {sys.executable}"],
        "packages": {name: number for name in _PACKAGES if (number := _version(name))},
        "system": [platform.platform(), f"glibc {platform.libc_ver()[1] or 'unknown'}", *_memory()],
        "processor": _processor(),
        "devices": _devices(),
        "driver": _driver(),
        "environment": {
            name: "(set)" if any(part in name for part in _SECRET) else value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PREFIXES)
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _memory() -> list[str]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return [f"{pages * size / 2**30:.1f} GiB of memory"]


def _processor() -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"{cores} cores of {os.cpu_count()} may be used"]
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return lines
    for line in text.splitlines():
        if line.startswith("model name"):
            lines.insert(0, line.partition(":")[2].strip())
            break
    words = set(text.split())
    return [*lines, "instructions: " + (", ".join(flag for flag in _FLAGS if flag in words) or "none of those used")]


def _devices() -> list[str]:
    """What jax finds, in a process of its own: a driver that hangs or crashes is told too."""
    code = "import jax; print(*jax.devices(), sep='\\n')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=3 * _PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ["jax has found no device within a minute"]
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["jax ended without a word"])[-1:]
    return done.stdout.split("\n")[:-1]


def _driver() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ["nvidia-smi is not installed"]
    query = ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run([program, *query], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return ["nvidia-smi does not answer"]
    return done.stdout.strip().splitlines() or [done.stderr.strip()]
