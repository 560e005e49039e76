"""Stored programs are code: only what its owner stored, under the name it was stored by, is ever loaded."""

import hashlib
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jserve.runtime.executables import ExecutableStore, Program
from jserve.runtime.program_folder import ASIDE, JOURNAL_PREFIX, KEY_FILE, SUFFIX, ProgramFolder
from pallas_kernels.native import library

NAME = f"{'0' * 31}1{SUFFIX}"


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("tp",))


def adder(amount: int) -> Program:
    shape = jax.ShapeDtypeStruct((8,), np.float32, sharding=jax.NamedSharding(mesh(), jax.P()))
    return Program(f"add {amount}", lambda: jax.jit(lambda x: x + amount).lower(shape))


def is_loaded(store: ExecutableStore, amount: int) -> bool:
    """Whether the program came from disk; it must be the right one in any case."""
    compiled, from_disk = store.get(adder(amount), mesh())
    x = jax.device_put(np.zeros(8, np.float32), jax.NamedSharding(mesh(), jax.P()))
    assert np.asarray(compiled(x)).tolist() == [amount] * 8
    return from_disk


def stored(folder: Path, amount: int) -> Path:
    """The file of a program, stored now."""
    store = ExecutableStore(folder, "key")
    is_loaded(store, amount)
    return folder / store._file_name(f"add {amount}")


def give_to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)


def open_to_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def open_to_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(path.stat().st_mode | 0o020)


@pytest.mark.parametrize("what", ["folder", "file", "key"])
@pytest.mark.parametrize("change", [give_to_another_user, open_to_others, open_to_group])
def test_what_another_user_could_have_written_is_not_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    file = stored(tmp_path, 1)
    assert is_loaded(ExecutableStore(tmp_path, "key"), 1)
    path = {"folder": tmp_path, "file": file, "key": tmp_path / KEY_FILE}[what]
    change(path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert not is_loaded(ExecutableStore(None, "key", precompiled=tmp_path), 1)
        assert not is_loaded(ExecutableStore(tmp_path, "key"), 1)
    assert "chmod go-w" in caplog.text or "belongs to user" in caplog.text


def test_a_folder_that_others_can_write_is_said_once_and_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        store = ExecutableStore(tmp_path, "key")
        for amount in range(3):
            assert not is_loaded(store, amount)
    assert len(caplog.records) == 1
    assert list(tmp_path.iterdir()) == []


def test_whatever_the_umask_what_is_stored_is_loaded_again(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        stored(tmp_path / "new" / "folder", 1)
    finally:
        os.umask(before)
    assert is_loaded(ExecutableStore(tmp_path / "new" / "folder", "key"), 1)


class Attack:
    """Notes that it was unpickled."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.note),)


def test_a_pickle_that_was_put_there_is_never_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, note = stored(tmp_path / "cache", 1), tmp_path / "opened"
    body = pickle.dumps(Attack(note))
    for digest in (hashlib.sha256(body).digest(), file.read_bytes()[:32], b""):
        file.write_bytes(digest + body)
        with caplog.at_level(logging.WARNING):
            assert not is_loaded(ExecutableStore(tmp_path / "cache", "key"), 1)
    assert not note.exists()
    assert "stored elsewhere or under another name" in caplog.text


def test_a_program_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    one, two = stored(tmp_path, 1), stored(tmp_path, 2)
    two.write_bytes(one.read_bytes())
    assert not is_loaded(ExecutableStore(tmp_path, "key"), 2)
    assert is_loaded(ExecutableStore(tmp_path, "key"), 2), "it is stored anew"


def test_a_program_of_another_folder_is_refused(tmp_path: Path) -> None:
    here, there = stored(tmp_path / "here", 1), stored(tmp_path / "there", 1)
    here.write_bytes(there.read_bytes())
    assert not is_loaded(ExecutableStore(tmp_path / "here", "key"), 1)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    file = stored(tmp_path / "cache", 1)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert not is_loaded(ExecutableStore(tmp_path / "cache", "key"), 1)


def test_only_the_owner_reads_the_key(tmp_path: Path) -> None:
    stored(tmp_path, 1)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


DIES = """
import os, signal, sys
from pathlib import Path
from jserve.runtime.program_folder import ProgramFolder
folder, name, other = sys.argv[1:]
programs = ProgramFolder(Path(folder))
with programs.loading(other):
    pass
with programs.loading(name):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_while_loading(folder: Path, name: str, other: str = NAME) -> None:
    """In another process, which loads `other` first."""
    done = subprocess.run([sys.executable, "-c", DIES, str(folder), name, other], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_a_program_that_ends_the_process_is_set_aside_and_its_neighbours_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stored(tmp_path, 1), stored(tmp_path, 2)
    die_while_loading(tmp_path, one.name, two.name)
    with caplog.at_level(logging.WARNING):
        store = ExecutableStore(tmp_path, "key")
    assert f"a process died while it loaded {one.name}" in caplog.text
    assert one.with_suffix(ASIDE).exists()
    assert not list(tmp_path.glob(f"{JOURNAL_PREFIX}*"))
    assert (is_loaded(store, 1), is_loaded(store, 2)) == (False, True)
    assert is_loaded(ExecutableStore(tmp_path, "key"), 1), "what was compiled in its place is loaded"


def test_a_precompiled_program_that_ends_the_process_is_left_there_and_not_loaded(tmp_path: Path) -> None:
    one = stored(tmp_path / "precompiled", 1)
    stored(tmp_path / "cache", 2)
    die_while_loading(tmp_path / "cache", one.name)
    for from_disk in (False, True):
        store = ExecutableStore(tmp_path / "cache", "key", precompiled=tmp_path / "precompiled")
        assert is_loaded(store, 1) == from_disk
    assert one.exists()


LEAVES = """
import os, sys, threading
from pathlib import Path
from jserve.runtime.program_folder import ProgramFolder, forgive_loading
folder, name = sys.argv[1:]
loads = threading.Event()
def load():
    with ProgramFolder(Path(folder)).loading(name):
        loads.set()
        threading.Event().wait()
threading.Thread(target=load, daemon=True).start()
loads.wait()
forgive_loading()
os._exit(0)
"""


def test_a_process_that_leaves_because_it_is_told_to_blames_no_program(tmp_path: Path) -> None:
    one = stored(tmp_path, 1)
    subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path), one.name], check=True, timeout=120)
    assert not list(tmp_path.glob(f"{JOURNAL_PREFIX}*"))
    assert is_loaded(ExecutableStore(tmp_path, "key"), 1)


def test_what_a_living_process_loads_is_not_set_aside(tmp_path: Path) -> None:
    one = stored(tmp_path, 1)
    with ProgramFolder(tmp_path).loading(one.name):
        assert is_loaded(ExecutableStore(tmp_path, "key"), 1)
    assert not list(tmp_path.glob(f"{JOURNAL_PREFIX}*"))
    assert is_loaded(ExecutableStore(tmp_path, "key"), 1)


def test_a_program_that_cannot_be_loaded_is_not_put_down_to_a_death(tmp_path: Path) -> None:
    folder = ProgramFolder(tmp_path)
    folder.write(NAME, b"program")
    with pytest.raises(ValueError, match="refused"), folder.loading(NAME):
        raise ValueError("refused")
    folder.set_aside_lost()
    assert folder.read(NAME) == b"program"


@pytest.mark.parametrize("change", [give_to_another_user, open_to_others])
def test_native_code_that_another_user_could_have_written_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    path = tmp_path / "kernel.native"
    library._store(path, b"stored")
    monkeypatch.setattr(library, "_compile", lambda *_: b"compiled")
    assert library._read_or_compile("kernel", "kind", [path]) == b"stored"
    change(path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert library._read_or_compile("kernel", "kind", [path]) == b"compiled"
    assert "stored native code is not used" in caplog.text


def test_native_code_under_the_name_of_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.native", tmp_path / "two.native"
    library._store(one, b"one")
    two.write_bytes(one.read_bytes())
    monkeypatch.setattr(library, "_compile", lambda *_: b"compiled")
    assert library._read_or_compile("kernel", "kind", [two]) == b"compiled"
