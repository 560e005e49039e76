"""A folder of stored programs: loading one runs its code, so each must be known to be one that its owner stored.

The folder and all files must belong to this user or root, and nobody else may write them. Each file begins with a
digest, made with a key that the folder holds, of its own name and its bytes: a damaged one, one from elsewhere and
one under another's name are all refused. What was being loaded when a process died is set aside by the next one.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from pallas_kernels.owned_files import check_folder, read_owned

logger = logging.getLogger(__name__)

SUFFIX = ".jserve"
ASIDE = ".aside"
KEY_FILE = "key"
PART_PREFIX = "part-"
JOURNAL_PREFIX = "loading-"
DIGEST_BYTES = 32
_KEY_BYTES = 32
_STALE_S = 3600
"""Age of what a writer left behind unfinished; the slowest write takes seconds."""
_NAME = re.compile(rf"[0-9a-f]+{re.escape(SUFFIX)}")


class ProgramFolder:
    """Reads and writes the files of one folder. Any thread may call."""

    def __init__(self, path: Path, *, key_mode: int = 0o600) -> None:
        """`key_mode` is that of the key where it is made here: others who load from the folder must read it."""
        self.path = path
        self._key_mode = key_mode
        self._key: bytes | None = None
        self._journal = _Journal(path)

    def read(self, name: str) -> bytes | None:
        """What was stored under a name; None where nothing was.

        Raises PermissionError where others could have written it, and ValueError where it is not what was stored.
        """
        try:
            check_folder(self.path)
            data = read_owned(self.path / name)
            key = self._read_key()
        except FileNotFoundError:
            return None
        if not hmac.compare_digest(data[:DIGEST_BYTES], _digest(key, name, data[DIGEST_BYTES:])):
            raise ValueError("its bytes are damaged, or were stored elsewhere or under another name")
        with suppress(OSError):  # a folder that is only read keeps its times
            os.utime(self.path / name)
        return data[DIGEST_BYTES:]

    def write(self, name: str, body: bytes) -> None:
        """Store bytes under a name, whole or not at all. Raises OSError."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_folder(self.path)
        data = _digest(self._read_or_make_key(), name, body) + body
        with tempfile.TemporaryDirectory(dir=self.path, prefix=PART_PREFIX) as folder:
            part = Path(folder, name)
            part.write_bytes(data)
            part.chmod(0o644)  # whatever the umask, nobody else writes it
            os.replace(part, self.path / name)

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """While the block runs, a death of this process is put down to the program of this name."""
        is_noted = self._journal.begin(name)
        try:
            yield
        finally:
            if is_noted:
                self._journal.end(name)

    def set_aside_lost(self) -> None:
        """Set aside every program that a process which died was loading, so that it is compiled again."""
        try:
            check_folder(self.path)
            for name in _lost_names(self.path):
                aside = self._aside(name)
                try:
                    os.replace(self.path / name, aside)
                except FileNotFoundError:  # it came from another folder, which is not to be written
                    aside.touch(mode=0o600)
                logger.warning("a process died while it loaded %s; it is set aside and compiled again", name)
        except OSError as error:
            logger.warning("could not look for programs that ended a process in %s (%s)", self.path, error)

    def is_set_aside(self, name: str) -> bool:
        """Whether a process died while it loaded the program of this name, from this folder or another."""
        return self._aside(name).exists()

    def tidy(self, limit_bytes: int) -> None:
        """Delete the programs used longest ago until the rest is within the limit, and old unfinished writes."""
        try:
            entries = list(self.path.iterdir())
            for part in entries:
                if part.name.startswith(PART_PREFIX) and time.time() - part.stat().st_mtime > _STALE_S:
                    shutil.rmtree(part, ignore_errors=True)
            files = [(file.stat(), file) for file in entries if file.suffix in (SUFFIX, ASIDE)]
            total = sum(stat.st_size for stat, _ in files)
            for stat, file in sorted(files, key=lambda pair: pair[0].st_mtime):
                if total <= limit_bytes:
                    return
                file.unlink(missing_ok=True)
                total -= stat.st_size
                logger.info("deleted %s: %s holds more than %d GiB", file.name, self.path, limit_bytes >> 30)
        except OSError as error:
            logger.warning("could not tidy the stored executables in %s (%s)", self.path, error)

    def _aside(self, name: str) -> Path:
        return (self.path / name).with_suffix(ASIDE)

    def _read_key(self) -> bytes:
        if self._key is None:
            key = read_owned(self.path / KEY_FILE)
            if len(key) != _KEY_BYTES:
                raise ValueError(f"{self.path / KEY_FILE} is not a key; delete it")
            self._key = key
        return self._key

    def _read_or_make_key(self) -> bytes:
        try:
            return self._read_key()
        except FileNotFoundError:
            pass
        with tempfile.TemporaryDirectory(dir=self.path, prefix=PART_PREFIX) as folder:
            part = Path(folder, KEY_FILE)
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(_KEY_BYTES))
            part.chmod(self._key_mode)
            with suppress(FileExistsError):  # another server was first
                os.link(part, self.path / KEY_FILE)
        return self._read_key()


def forgive_loading() -> None:
    """This process is about to leave because it was told to: what it is loading is not to blame for its end."""
    for journal in list(_Journal.all):
        journal.drop()


class _Journal:
    """The names of what is being loaded, in a file that is locked as long as this process lives."""

    all: ClassVar["WeakSet[_Journal]"] = WeakSet()

    def __init__(self, folder: Path) -> None:
        self.all.add(self)
        self._folder = folder
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._descriptor = -1
        self._names: list[str] = []

    def begin(self, name: str) -> bool:
        """Note a name. False where the folder cannot be written: then nothing is noted."""
        with self._lock:
            try:
                if self._path is None:
                    self._descriptor, path = tempfile.mkstemp(prefix=JOURNAL_PREFIX, dir=self._folder)
                    self._path = Path(path)
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                os.write(self._descriptor, f"+{name}\n".encode())
            except OSError:
                return False
            self._names.append(name)
            return True

    def end(self, name: str) -> None:
        """The name is loaded, or could not be."""
        with self._lock:
            self._names.remove(name)
            with suppress(OSError):
                os.write(self._descriptor, f"-{name}\n".encode())
                if not self._names and self._path is not None:
                    self._path.unlink(missing_ok=True)
            if not self._names:
                os.close(self._descriptor)
                self._path = None

    def drop(self) -> None:
        """Delete the file. Takes no lock: the thread that has it may be the one that is interrupted for this."""
        if (path := self._path) is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _lost_names(folder: Path) -> list[str]:
    """What processes that are gone were loading when they died. Their notes are deleted."""
    lost = []
    for path in folder.glob(f"{JOURNAL_PREFIX}*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its process lives
            lines = file.read().decode(errors="replace").splitlines()
            path.unlink(missing_ok=True)
        begun = [line[1:] for line in lines if line.startswith("+")]
        for line in lines:
            if line.startswith("-") and line[1:] in begun:
                begun.remove(line[1:])
        lost += [name for name in begun if _NAME.fullmatch(name)]
    return lost


def _digest(key: bytes, name: str, body: bytes) -> bytes:
    return hmac.new(key, name.encode() + b"\n" + body, hashlib.sha256).digest()
