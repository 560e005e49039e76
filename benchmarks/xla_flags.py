"""Flags of XLA that a visit to a GPU sets, where the installed version knows them: an unknown one ends a process."""

import importlib.util
import mmap
from collections.abc import Mapping
from pathlib import Path

__all__ = ["GRAPHS_IN_PROFILES", "KEPT_GRAPHS", "known_flags"]

GRAPHS_IN_PROFILES = {"xla_enable_command_buffers_during_profiling": "true"}
"""Otherwise the kernels of a CUDA graph are launched one by one while a profile is taken."""
KEPT_GRAPHS = {"xla_gpu_command_buffer_update_mode": "SKIP_TEMP"}
"""Otherwise a graph is updated whenever its temporaries lie elsewhere; to be tried, not known to be right."""


def known_flags(flags: Mapping[str, str]) -> str:
    """Those that all of XLA's installed libraries know, as words for XLA_FLAGS."""
    libraries = _libraries()
    known = [name for name in flags if libraries and all(_holds(path, name.encode()) for path in libraries)]
    return " ".join(f"--{name}={flags[name]}" for name in known)


def _libraries() -> list[Path]:
    """jaxlib's, and those of the plugins for GPUs. Imports nothing of them."""
    paths: list[Path] = []
    for package, pattern in (("jaxlib", "libjax_common.so"), ("jax_plugins", "*/xla_cuda_plugin.so")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            paths += Path(folder).glob(pattern)
    return paths


def _holds(path: Path, name: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name) >= 0
