"""Compiled programs on disk: the second start of the same model compiles nothing.

A program's name on disk is a digest of everything that could change it: versions, device, driver, flags, jserve's own
source, model, shapes. One that `ProgramFolder` or the runtime refuses is compiled again, and the log says so. Programs
made ahead, for an image, lie in a folder that is only read; with them the sizes that they were made for, which depend
on the memory that was free, so that a start takes these where its own flags are silent.
"""

import hashlib
import logging
import os
import pickle
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import msgspec
from jax.experimental import serialize_executable

from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.runtime import autotuning
from jserve.runtime.program_digest import describe
from jserve.runtime.program_folder import SUFFIX, ProgramFolder
from pallas_kernels.owned_files import check_folder

logger = logging.getLogger(__name__)

LIMIT_BYTES = 8 << 30
"""What a folder may hold before those used longest ago are deleted: some 40 sets of a small model's programs."""
SIZES_FILE = "sizes.json"


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

    def __init__(
        self, folder: Path | None, key: str, *, precompiled: Path | None = None, key_mode: int = 0o600
    ) -> None:
        """`folder` is read and written, `precompiled` is read first and never written; None means none. `key` is what
        all programs depend on; `key_mode` as of `ProgramFolder`.
        """
        self._folder = _opened(folder, key_mode)
        self._precompiled = _opened(precompiled, key_mode)
        self._key = key
        self.temporaries: dict[Hashable, int] = {}
        """Bytes of temporaries by the program's key, as the compiler counts them; 0 where it does not say."""
        self._lowering = threading.Lock()
        self._counting = threading.Lock()
        self.untuned: set[Hashable] = set()
        """Keys of programs whose products the compiler could not try out."""
        self.num_compiled = 0
        self.num_loaded = 0
        self._news: list[tuple[str, str]] = []
        if self._folder is not None:
            self._folder.set_aside_lost()

    def get(self, program: Program, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled, bool]:
        """The program ready to run on the devices of `mesh`, which it is lowered for, and whether it came from
        disk. Any thread may call.
        """
        stored = self._load_first(program, mesh)
        if stored is not None:
            with self._counting:
                self.num_loaded += 1
                self._news.append((program.name, "cache"))
            return stored, True
        with self._lowering:  # tracing holds the GIL anyway, and nnx's tracing state is not for two threads
            lowered = program.lower()
        compiled, is_tuned = self._compile(program, lowered)
        with self._counting:
            self.num_compiled += 1
            self._news.append((program.name, "cold"))
        self.temporaries[program.key] = _temporaries(compiled)
        if self._folder is not None and is_tuned:  # else the next start tries again
            self._save(self._folder, program, compiled)
        return compiled, False

    def _compile(self, program: Program, lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
        """The program, and whether its products were tried out where they have to be: a slower program is better than
        none.
        """
        try:
            return lowered.compile(), True
        except jax.errors.JaxRuntimeError as error:
            if not autotuning.has_failed(error):
                raise
            logger.warning(
                "%s: the compiler could not try out its products (%s); they are compiled untried and may be slower: "
                "lower --gpu-memory-utilization or --kv-cache-memory-bytes",
                program.name,
                str(error).strip().splitlines()[0][:200],
            )
            compiled = lowered.compile(autotuning.WITHOUT)
        with self._counting:
            self.untuned.add(program.key)
        return compiled, False

    def take_news(self) -> list[tuple[str, str]]:
        """Names of the programs that came since the last call, each with "cold" (compiled) or "cache" (loaded)."""
        if not self._news:
            return []
        with self._counting:
            news, self._news = self._news, []
        return news

    @contextmanager
    def blamed(self, key: Hashable) -> Iterator[None]:
        """While the block runs the program of this key, a death of this process is put down to it, and the next start
        compiles it again.
        """
        if self._folder is None:
            yield
            return
        with self._folder.loading(self._file_name(key)):
            yield

    def tidy(self) -> None:
        """Delete what is too much of the folder, and what writers that were killed left in it."""
        if self._folder is not None:
            self._folder.tidy(LIMIT_BYTES)

    def _file_name(self, key: Hashable) -> str:
        return hashlib.sha256(f"{self._key}\n{describe(key)}".encode()).hexdigest()[:32] + SUFFIX

    def _load_first(self, program: Program, mesh: jax.sharding.Mesh) -> jax.stages.Compiled | None:
        """From the first folder that has it."""
        name = self._file_name(program.key)
        is_set_aside = self._folder is not None and self._folder.is_set_aside(name)
        for folder in (None if is_set_aside else self._precompiled, self._folder):
            if folder is not None and (compiled := self._load(folder, name, program, mesh)) is not None:
                return compiled
        return None

    def _load(
        self, folder: ProgramFolder, name: str, program: Program, mesh: jax.sharding.Mesh
    ) -> jax.stages.Compiled | None:
        try:
            body = folder.read(name)
            if body is None:
                return None
            with self.blamed(program.key):
                temporaries, payload, in_tree, out_tree = pickle.loads(body)  # what `read` knows to be the owner's own
                load = serialize_executable.deserialize_and_load
                devices = list(mesh.devices.flat)  # otherwise it is loaded for every device that jax sees
                compiled = load(payload, in_tree, out_tree, execution_devices=devices)
            self.temporaries[program.key] = temporaries
            return compiled
        except Exception as error:
            logger.warning("stored executable %s is not usable (%s); compiling again", name, error)
            return None

    def _save(self, folder: ProgramFolder, program: Program, compiled: jax.stages.Compiled) -> None:
        try:
            body = pickle.dumps((self.temporaries[program.key], *serialize_executable.serialize(compiled)))
            folder.write(self._file_name(program.key), body)
        except Exception as error:
            logger.warning(
                "%s could not be stored in %s (%s); the next start compiles it again", program.name, folder.path, error
            )


def _opened(folder: Path | None, key_mode: int) -> ProgramFolder | None:
    """The folder; None, and said so, where others could have written it."""
    try:
        if folder is not None:
            check_folder(folder)
            return ProgramFolder(folder, key_mode=key_mode)
    except PermissionError as error:
        logger.warning("programs are neither loaded nor stored: %s", error)
    return None


def _temporaries(compiled: jax.stages.Compiled) -> int:
    analysis = compiled.memory_analysis()  # 0.2 s for a large program on a CPU, hence stored
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def default_folder() -> Path:
    """Where executables are kept by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jserve" / "executables"


class PrecompiledSizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the flags of these names were resolved to when programs were made ahead."""

    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    kv_cache_memory_bytes: int | None
    """None for an encoder, which has no cache."""


def write_sizes(folder: Path, sizes: PrecompiledSizes) -> None:
    """Leave the sizes beside the programs, whole or not at all."""
    part = folder / f"{SIZES_FILE}.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(sizes)))
    os.replace(part, folder / SIZES_FILE)


def with_precompiled_sizes(engine_config: EngineConfig, folder: Path) -> EngineConfig:
    """The configuration with the folder's sizes in place of automatic ones. Raises ConfigError where it holds none."""
    try:
        sizes = msgspec.json.decode((folder / SIZES_FILE).read_bytes(), type=PrecompiledSizes)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"--executables {folder} holds no programs that `jserve compile` made ({error}); "
            f"make them: jserve compile --model PATH --output {folder}"
        ) from None
    resolved = msgspec.structs.asdict(sizes)
    automatic = {name: value for name, value in resolved.items() if getattr(engine_config, name) in (None, "auto")}
    return msgspec.structs.replace(engine_config, **automatic)
