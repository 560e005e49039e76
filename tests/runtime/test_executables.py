"""Stored executables: the second start compiles nothing, and nothing stale or damaged is ever run."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import jserve
from jserve.runtime import executables as module
from jserve.runtime import program_digest, program_folder
from jserve.runtime.compiles import COMPILE_EVENT
from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.program_digest import environment_key, source_digest
from jserve.runtime.program_folder import SUFFIX, ProgramFolder


def mesh_of(count: int = 1) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("tp",))


def adder(amount: int, mesh: Mesh, name: str = "add") -> Program:
    """f32[8] + amount, sharded over the mesh."""
    place = jax.NamedSharding(mesh, jax.P("tp"))
    inputs = jax.ShapeDtypeStruct((8,), np.float32, sharding=place)
    return Program(name, lambda: jax.jit(lambda x: x + amount).lower(inputs))


def apply(compiled: jax.stages.Compiled, mesh: Mesh) -> list[float]:
    x = jax.device_put(np.arange(8, dtype=np.float32), jax.NamedSharding(mesh, jax.P("tp")))
    return np.asarray(compiled(x)).tolist()


def files(folder: Path) -> list[Path]:
    """The stored programs."""
    return sorted(folder.glob(f"*{SUFFIX}"))


@contextmanager
def count_compiles() -> Iterator[list[str]]:
    """What any thread compiles meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == COMPILE_EVENT:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_stored_program_runs_on_its_mesh_without_a_compile(tmp_path: Path, devices: int) -> None:
    """Also where jax sees more devices than the mesh has."""
    mesh = mesh_of(devices)
    first, loaded = ExecutableStore(tmp_path, "key").get(adder(3, mesh), mesh)
    assert not loaded
    store = ExecutableStore(tmp_path, "key")
    with count_compiles() as seen:
        second, loaded = store.get(adder(3, mesh), mesh)
    assert loaded
    assert not seen
    assert (store.num_compiled, store.num_loaded) == (0, 1)
    assert apply(second, mesh) == apply(first, mesh) == [x + 3 for x in range(8)]


def test_program_that_is_stored_is_not_even_traced(tmp_path: Path) -> None:
    mesh = mesh_of()
    ExecutableStore(tmp_path, "key").get(adder(3, mesh), mesh)

    def lower() -> jax.stages.Lowered:
        raise AssertionError("lowered although it is stored")

    assert ExecutableStore(tmp_path, "key").get(Program("add", lower), mesh)[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
    ],
    ids=["last byte", "digest", "half of it", "empty"],
)
def test_damaged_file_is_compiled_again_with_a_warning_and_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    mesh = mesh_of()
    ExecutableStore(tmp_path, "key").get(adder(3, mesh), mesh)
    (file,) = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    store = ExecutableStore(tmp_path, "key")
    with caplog.at_level(logging.WARNING):
        compiled, loaded = store.get(adder(3, mesh), mesh)
    assert not loaded
    assert apply(compiled, mesh)[0] == 3
    assert file.name in caplog.text
    assert "compiling again" in caplog.text
    assert ExecutableStore(tmp_path, "key").get(adder(3, mesh), mesh)[1]


def test_another_key_or_name_is_another_file(tmp_path: Path) -> None:
    mesh = mesh_of()
    for key, name in (("one", "add"), ("two", "add"), ("one", "other")):
        assert not ExecutableStore(tmp_path, key).get(adder(len(files(tmp_path)), mesh, name), mesh)[1]
    assert len(files(tmp_path)) == 3
    assert apply(ExecutableStore(tmp_path, "two").get(adder(0, mesh), mesh)[0], mesh)[0] == 1


def test_without_a_folder_every_start_compiles() -> None:
    mesh = mesh_of()
    for _ in range(2):
        assert not ExecutableStore(None, "key").get(adder(1, mesh), mesh)[1]


def test_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file" / "folder"
    blocked.parent.write_text("not a folder")
    mesh = mesh_of()
    with caplog.at_level(logging.WARNING):
        compiled, loaded = ExecutableStore(blocked, "key").get(adder(2, mesh), mesh)
    assert not loaded
    assert apply(compiled, mesh)[0] == 2
    assert "could not be stored" in caplog.text


class _NoRoom:
    """Lowers to itself, and compiles as XLA does where its autotuner finds no memory."""

    def __init__(self, program: Program, message: str) -> None:
        self._program, self._message, self.tried = program, message, []

    def __call__(self) -> "_NoRoom":
        return self

    def compile(self, options: dict[str, object] | None = None) -> jax.stages.Compiled:
        self.tried.append(options)
        if options != {"xla_gpu_autotune_level": 0}:
            raise jax.errors.JaxRuntimeError(self._message)
        return self._program.lower().compile()


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1050673152 bytes.",
        "INTERNAL: Autotuning failed for HLO: %gemm ... No valid config found!",
    ],
)
def test_program_that_cannot_be_tuned_is_compiled_untuned_and_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, message: str
) -> None:
    """Behind ready, the KV cache has the memory that the compiler would try products out in."""
    mesh = mesh_of()
    lower = _NoRoom(adder(3, mesh), message)
    store = ExecutableStore(tmp_path, "key")
    compiled, loaded = store.get(Program("add", lower), mesh)  # type: ignore[arg-type]
    assert apply(compiled, mesh) == [x + 3 for x in range(8)]
    assert not loaded
    assert lower.tried == [None, {"xla_gpu_autotune_level": 0}]
    assert store.untuned == {"add"}
    assert message[:20] in caplog.text
    assert not files(tmp_path), "a start with more room tries again"


def test_other_failures_of_the_compiler_are_not_tried_again(tmp_path: Path) -> None:
    mesh = mesh_of()
    lower = _NoRoom(adder(3, mesh), "INTERNAL: ptxas is not there")
    with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
        ExecutableStore(tmp_path, "key").get(Program("add", lower), mesh)  # type: ignore[arg-type]
    assert lower.tried == [None]


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(program_folder.os, "replace", refuse)
    mesh = mesh_of()
    ExecutableStore(tmp_path, "key").get(adder(2, mesh), mesh)
    assert files(tmp_path) == []


def test_precompiled_folder_is_read_first_and_never_written(tmp_path: Path) -> None:
    mesh, precompiled, cache = mesh_of(), tmp_path / "precompiled", tmp_path / "cache"
    ExecutableStore(precompiled, "key").get(adder(3, mesh), mesh)
    (precompiled_file,) = files(precompiled)
    store = ExecutableStore(cache, "key", precompiled=precompiled)
    assert store.get(adder(3, mesh), mesh)[1]
    assert not cache.exists()
    assert not store.get(adder(4, mesh, "other"), mesh)[1]
    assert files(precompiled) == [precompiled_file]
    assert len(files(cache)) == 1
    precompiled_file.write_bytes(b"damaged")
    compiled, loaded = store.get(adder(3, mesh), mesh)
    assert not loaded
    assert apply(compiled, mesh)[0] == 3
    assert precompiled_file.read_bytes() == b"damaged"
    assert ExecutableStore(cache, "key").get(adder(3, mesh), mesh)[1]


def test_two_servers_that_start_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    mesh = mesh_of()
    stores = [ExecutableStore(tmp_path, "key") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda store: store.get(adder(5, mesh), mesh)[0], stores))
    assert [apply(compiled, mesh)[0] for compiled in actual] == [5] * 4
    assert len(files(tmp_path)) == 1
    assert ExecutableStore(tmp_path, "key").get(adder(5, mesh), mesh)[1]


def test_temporaries_of_a_program_are_known_without_asking_the_compiler_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = mesh_of()
    monkeypatch.setattr(module, "_temporaries", lambda _: 1234)
    ExecutableStore(tmp_path, "key").get(adder(5, mesh), mesh)
    monkeypatch.setattr(module, "_temporaries", lambda _: pytest.fail("asked again"))
    store = ExecutableStore(tmp_path, "key")
    store.get(adder(5, mesh), mesh)
    assert store.temporaries == {"add": 1234}


def test_tidying_deletes_what_was_used_longest_ago_and_unfinished_writes(tmp_path: Path) -> None:
    mesh = mesh_of()
    store = ExecutableStore(tmp_path, "key")
    for number in range(3):
        store.get(adder(number, mesh, f"add {number}"), mesh)
    oldest, middle, newest = (tmp_path / store._file_name(f"add {n}") for n in range(3))
    for age, file in ((300, oldest), (200, middle), (100, newest)):
        os.utime(file, (time.time() - age,) * 2)
    ExecutableStore(tmp_path, "key").get(adder(0, mesh, "add 0"), mesh)  # used now, so it is the newest
    (tmp_path / "part-dead").mkdir()
    os.utime(tmp_path / "part-dead", (0, 0))
    (tmp_path / "part-alive").mkdir()
    (tmp_path / "else.txt").write_text("not ours")
    ProgramFolder(tmp_path).tidy(oldest.stat().st_size + newest.stat().st_size)
    left = {oldest.name, newest.name, "part-alive", "else.txt", "key"}
    assert {file.name for file in tmp_path.iterdir()} == left


def test_threads_get_each_their_program(tmp_path: Path) -> None:
    mesh = mesh_of()
    for expected in (False, True):
        store = ExecutableStore(tmp_path, "key")
        with ThreadPoolExecutor(4) as pool:
            actual = list(pool.map(lambda n: store.get(adder(n, mesh, f"add {n}"), mesh), range(6)))  # noqa: B023
        assert [loaded for _, loaded in actual] == [expected] * 6
        assert [apply(compiled, mesh)[0] for compiled, _ in actual] == list(range(6))
        assert (store.num_compiled, store.num_loaded) == ((0, 6) if expected else (6, 0))


def test_environment_key_tells_meshes_and_flags_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [environment_key(mesh_of(1)), environment_key(mesh_of(2))]
    keys.append(environment_key(Mesh(np.array(jax.devices()[1:2]), ("tp",))))
    monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
    keys.append(environment_key(mesh_of(1)))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    keys.append(environment_key(mesh_of(1)))
    assert len(set(keys)) == 5
    assert environment_key(mesh_of(1)) == keys[-1]


@pytest.mark.parametrize(
    "file",
    [
        *("protocol.py", "batch.py", "config/model.py", "weights/load.py", "layers/norm.py", "models/qwen3.py"),
        *("runtime/step.py", "schedule/groups.py"),
    ],
)
def test_source_digest_changes_with_the_source_that_programs_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    home = tmp_path / "jserve"
    shutil.copytree(Path(jserve.__file__).parent, home, ignore=shutil.ignore_patterns("__pycache__"))
    before = source_digest()
    monkeypatch.setattr(program_digest, "__file__", str(home / "runtime" / "program_digest.py"))
    assert source_digest() == before
    with (home / file).open("a") as stream:
        stream.write("# changed\n")
    assert source_digest() != before


THROUGH_TWO_CACHES = """
import sys
from pathlib import Path
import numpy as np
from jserve.runtime.platform import choose_platform, make_mesh
choose_platform(0.9)
import jax
from jserve.runtime.compile_behind import CompileBehind, Load
from jserve.runtime.compile_threads import CompileThreads
from jserve.runtime.executables import ExecutableStore, Program
x = np.ones((64, 64), np.float32)
program = Program("sine", lambda: jax.jit(lambda x: jax.numpy.sin(x @ x) @ x).lower(x))
compiled, stored = ExecutableStore(Path(sys.argv[1]), "key").get(program, make_mesh(1))
print(stored, float(compiled(x).sum()))
"""


def test_what_jax_has_in_a_cache_of_its_own_does_not_spoil_ours(tmp_path: Path) -> None:
    """On a CPU a program that jax took from its cache is stored without its code, and fails when it is run."""
    inputs = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    reported = [
        subprocess.run(
            [sys.executable, "-c", THROUGH_TWO_CACHES, str(tmp_path / folder)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | inputs,
        ).stdout.split()
        for folder in ("first", "second", "second")
    ]
    assert [stored for stored, _ in reported] == ["False", "False", "True"]
    assert len({result for _, result in reported}) == 1
