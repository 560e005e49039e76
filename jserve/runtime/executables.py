"""Compiled programs on disk: the second start of the same model compiles nothing.

A file holds one serialized executable behind a digest of its bytes. Its name is a digest of everything that
could change the program: versions, device, driver, flags, jserve's own source, model, shapes. A file that is
damaged or refused by the runtime is compiled again, and said so.
"""

import hashlib
import logging
import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental import serialize_executable

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
SOURCE_FOLDERS = ("layers", "models", "runtime", "quant")
SOURCE_FILES = ("batch.py", "config.py", "protocol.py")


@dataclass(frozen=True, slots=True)
class Program:
    """One program to have: its name within the engine, and how it is lowered where it has to be compiled."""

    name: str
    lower: Callable[[], jax.stages.Lowered]


class ExecutableStore:
    """Loads compiled programs from a folder, and compiles and stores those that are missing."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder = folder
        self._key = key
        self._lowering = threading.Lock()
        self._counting = threading.Lock()
        self.num_compiled = 0
        self.num_loaded = 0
        self._news: list[tuple[str, str]] = []

    def get(self, program: Program, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled, bool]:
        """The program ready to run on the devices of `mesh`, which it is lowered for, and whether it came from
        disk. Any thread may call.
        """
        path = self._path(program)
        stored = self._load(path, mesh) if path is not None else None
        if stored is not None:
            with self._counting:
                self.num_loaded += 1
                self._news.append((program.name, "cache"))
            return stored, True
        with self._lowering:  # tracing holds the GIL anyway, and nnx's tracing state is not for two threads
            lowered = program.lower()
        compiled = lowered.compile()
        with self._counting:
            self.num_compiled += 1
            self._news.append((program.name, "cold"))
        if path is not None:
            self._save(path, compiled)
        return compiled, False

    def take_news(self) -> list[tuple[str, str]]:
        """Names of the programs that came since the last call, each with "cold" (compiled) or "cache" (loaded)."""
        if not self._news:
            return []
        with self._counting:
            news, self._news = self._news, []
        return news

    def _path(self, program: Program) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{self._key}\n{program.name}".encode()).hexdigest()[:32]
        return self._folder / f"{name}.jserve"

    def _load(self, path: Path, mesh: jax.sharding.Mesh) -> jax.stages.Compiled | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("its bytes are damaged")
            devices = list(mesh.devices.flat)  # otherwise it is loaded for every device that jax sees
            payload, in_tree, out_tree = pickle.loads(body)
            load = serialize_executable.deserialize_and_load
            return load(payload, in_tree, out_tree, execution_devices=devices)
        except Exception as error:
            logger.warning("stored executable %s is not usable (%s); compiling again", path.name, error)
            return None

    def _save(self, path: Path, compiled: jax.stages.Compiled) -> None:
        try:
            body = pickle.dumps(serialize_executable.serialize(compiled))
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                part = Path(folder, path.name)
                part.write_bytes(hashlib.sha256(body).digest() + body)
                os.replace(part, path)
        except Exception as error:
            logger.warning("executable could not be stored in %s (%s); the next start compiles again", path, error)


def environment_key(mesh: jax.sharding.Mesh) -> str:
    """Versions, devices, driver, flags and source: what the programs of this process depend on."""
    device = mesh.devices.flat[0]
    parts: list[Any] = [
        jax.__version__,
        jaxlib.version.__version__,
        device.client.platform_version,
        device.device_kind,
        dict(mesh.shape),
        [d.id for d in mesh.devices.flat],
        {name: value for name, value in sorted(os.environ.items()) if name.startswith(("XLA_", "JAX_"))},
        sorted((name, str(value)) for name, value in jax.config.values.items()),
        _cpu_model() if device.platform == "cpu" else "",
        os.cpu_count() if device.platform == "cpu" else "",
        source_digest(),
    ]
    return "\n".join(map(str, parts))


def source_digest() -> str:
    """Digest of the source that programs are traced from; the same wherever it is installed."""
    import pallas_kernels

    home, kernels = Path(__file__).parent.parent, Path(pallas_kernels.__path__[0])
    files = [home / name for name in SOURCE_FILES]
    files += [file for folder in SOURCE_FOLDERS for file in (home / folder).rglob("*.py")]
    named = {f"jserve/{file.relative_to(home)}": file for file in files}
    named |= {f"pallas_kernels/{file.relative_to(kernels)}": file for file in kernels.rglob("*.py")}
    digest = hashlib.sha256()
    for name, file in sorted(named.items()):
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def default_folder() -> Path:
    """Where executables are kept unless told otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jserve" / "executables"


def _cpu_model() -> str:
    """What decides which instructions a CPU program may hold."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
