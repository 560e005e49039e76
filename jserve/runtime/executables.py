"""Compiled programs on disk: the second start of the same model compiles nothing.

A file holds one serialized executable behind a digest of its bytes. Its name is a digest of everything that
could change the program: versions, device, driver, flags, jserve's own source, model, shapes. A file that is
damaged or refused by the runtime is compiled again, and said so.
"""

import hashlib
import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import serialize_executable

from jserve.runtime.program_digest import describe

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
SUFFIX = ".jserve"
PART_PREFIX = "part-"
_STALE_S = 3600
"""Age of what a writer left behind unfinished; the slowest write takes seconds."""
LIMIT_BYTES = 8 << 30
"""What a folder may hold before those used longest ago are deleted: some 40 sets of a small model's programs."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program to have: its key within the engine, and how it is lowered where it has to be compiled."""

    key: Hashable
    """One of `program_keys`."""
    lower: Callable[[], jax.stages.Lowered]

    @property
    def name(self) -> str:
        """For display."""
        return str(self.key)


class ExecutableStore:
    """Loads compiled programs from a folder, and compiles and stores those that are missing."""

    def __init__(self, folder: Path | None, key: str, *, precompiled: Path | None = None) -> None:
        """`folder` is read and written, `precompiled` is read first and never written; None means none."""
        self._folder = folder
        self._precompiled = precompiled
        self._key = key
        self.temporaries: dict[Hashable, int] = {}
        """Bytes of temporaries by the program's key, as the compiler counts them; 0 where it does not say."""
        self._lowering = threading.Lock()
        self._counting = threading.Lock()
        self.num_compiled = 0
        self.num_loaded = 0
        self._news: list[tuple[str, str]] = []

    def get(self, program: Program, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled, bool]:
        """The program ready to run on the devices of `mesh`, which it is lowered for, and whether it came from
        disk. Any thread may call.
        """
        paths = [
            folder / self._file_name(program) for folder in (self._precompiled, self._folder) if folder is not None
        ]
        found = (self._load(path, program, mesh) for path in paths)
        stored = next((compiled for compiled in found if compiled is not None), None)
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
        self.temporaries[program.key] = _temporaries(compiled)
        if self._folder is not None:
            self._save(self._folder / self._file_name(program), program, compiled)
        return compiled, False

    def take_news(self) -> list[tuple[str, str]]:
        """Names of the programs that came since the last call, each with "cold" (compiled) or "cache" (loaded)."""
        if not self._news:
            return []
        with self._counting:
            news, self._news = self._news, []
        return news

    def tidy(self) -> None:
        """Delete what is too much of the folder, and what writers that were killed left in it."""
        if self._folder is not None:
            tidy(self._folder, LIMIT_BYTES)

    def _file_name(self, program: Program) -> str:
        return hashlib.sha256(f"{self._key}\n{describe(program.key)}".encode()).hexdigest()[:32] + SUFFIX

    def _load(self, path: Path, program: Program, mesh: jax.sharding.Mesh) -> jax.stages.Compiled | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("its bytes are damaged")
            devices = list(mesh.devices.flat)  # otherwise it is loaded for every device that jax sees
            temporaries, payload, in_tree, out_tree = pickle.loads(body)
            load = serialize_executable.deserialize_and_load
            compiled = load(payload, in_tree, out_tree, execution_devices=devices)
            self.temporaries[program.key] = temporaries
            with suppress(OSError):  # a folder that is only read keeps its times
                os.utime(path)
            return compiled
        except Exception as error:
            logger.warning("stored executable %s is not usable (%s); compiling again", path.name, error)
            return None

    def _save(self, path: Path, program: Program, compiled: jax.stages.Compiled) -> None:
        try:
            body = pickle.dumps((self.temporaries[program.key], *serialize_executable.serialize(compiled)))
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=PART_PREFIX) as folder:
                part = Path(folder, path.name)
                part.write_bytes(hashlib.sha256(body).digest() + body)
                os.replace(part, path)
        except Exception as error:
            logger.warning("executable could not be stored in %s (%s); the next start compiles again", path, error)


def _temporaries(compiled: jax.stages.Compiled) -> int:
    analysis = compiled.memory_analysis()  # 0.2 s for a large program on a CPU, hence stored
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def tidy(folder: Path, limit_bytes: int) -> None:
    """Delete the programs used longest ago until the rest is within the limit, and old unfinished writes."""
    try:
        entries = list(folder.iterdir())
        for part in entries:
            if part.name.startswith(PART_PREFIX) and time.time() - part.stat().st_mtime > _STALE_S:
                shutil.rmtree(part, ignore_errors=True)
        files = [(file.stat(), file) for file in entries if file.suffix == SUFFIX]
        total = sum(stat.st_size for stat, _ in files)
        for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime):
            if total <= limit_bytes:
                return
            file.unlink(missing_ok=True)
            total -= stat.st_size
            logger.info("deleted %s: %s holds more than %d GiB", file.name, folder, limit_bytes >> 30)
    except OSError as error:
        logger.warning("could not tidy the stored executables in %s (%s)", folder, error)


def default_folder() -> Path:
    """Where executables are kept by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jserve" / "executables"
