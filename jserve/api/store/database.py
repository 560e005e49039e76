"""One SQLite database, whose only thread does one transaction after the other.

So the event loop never waits for a disk, and whoever reads sees what was written before. A process that is killed
leaves the last whole transaction. Without a folder the database is in memory and ends with the process.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jserve.errors import StartupError, StorageError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER
);
CREATE INDEX files_of_owner ON files (owner, created_at);
CREATE TABLE batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, is_open INTEGER NOT NULL, created_at INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX open_batches ON batches (is_open, created_at);
CREATE TABLE results (
    batch_id TEXT NOT NULL, line INTEGER NOT NULL, is_error INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
) WITHOUT ROWID;
CREATE TABLE responses (
    owner TEXT NOT NULL, id TEXT NOT NULL, previous_id TEXT, created_at INTEGER NOT NULL, used_at REAL NOT NULL,
    bytes INTEGER NOT NULL, input BLOB NOT NULL, body BLOB NOT NULL, is_open INTEGER NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX responses_by_use ON responses (owner, used_at);
"""


class Database:
    """The database of one server in `folder`, which no other server may have at the same time.

    Raises StartupError where the folder cannot be used.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = None if folder is None else _locked(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            self._connection = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise StartupError(f"--storage-dir: {folder} holds a database that cannot be used: {error}") from error

    async def run(self, work: Work[Result]) -> Result:
        """What `work` returns, done as one transaction. Raises StorageError where the disk does not take it."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Work[Result]) -> "Future[Result]":
        """The same without waiting."""
        return self._thread.submit(self._transact, work)

    def close(self) -> None:
        """Finish what was submitted, and let another server have the folder. Blocks meanwhile."""
        self._thread.submit(self._connection.close).result()
        self._release()

    def _release(self) -> None:
        self._thread.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> sqlite3.Connection:
        name = ":memory:"
        if self.folder is not None:
            name = str(self.folder / "jserve.sqlite")
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite's other files follow it.
        connection = sqlite3.connect(name, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"its version is {version}, and this jserve reads {SCHEMA_VERSION}")
        return connection

    def _transact(self, work: Work[Result]) -> Result:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error | OSError):
                logger.error("the store failed: %s", error)
                raise StorageError(f"the server could not store this: {error}") from error
            raise
        return result


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder. Raises StartupError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"--storage-dir: {folder} cannot be used: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StartupError(
            f"--storage-dir: {folder} belongs to a server that is running; give each server its own"
        ) from error
    return descriptor
