"""Files of OpenAI's Files API: a row each, and their bytes in a folder beside the database.

A file is there when its row is: bytes are complete before the row is written. What has no row is removed at a start.
"""

import contextlib
import logging
import os
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec

from jserve.api.store.database import Database
from jserve.errors import StorageError

logger = logging.getLogger(__name__)

_LEAST_BYTES = 4096
"""What a file counts for at least, so that there are not too many of them."""
_COLUMNS = "id, owner, filename, purpose, bytes, created_at, expires_at"


class StoredFile(msgspec.Struct, frozen=True):
    """One file. Times are Unix seconds; `owner` is whose it is, as `ApiKey.owner` has it."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None

    def described(self) -> dict[str, Any]:
        """OpenAI's file object."""
        described = {name: getattr(self, name) for name in self.__struct_fields__ if name != "owner"}
        return {"object": "file", **described, "status": "processed", "status_details": None}


class FileTable:
    """The files of all owners, in a folder of the database's."""

    def __init__(self, database: Database, folder: Path, retention_s: float) -> None:
        """Files that do not say otherwise expire after `retention_s` seconds."""
        self._database = database
        self._folder = folder
        self._retention_s = retention_s
        folder.mkdir(mode=0o700, exist_ok=True)
        self._remove_strays()

    def path(self, file_id: str) -> Path:
        """Where the bytes are, or will be."""
        return self._folder / file_id

    def new_path(self) -> Path:
        """A place for bytes that become a file with `add`."""
        return self._folder / f"{secrets.token_hex(16)}.part"

    async def add(
        self,
        part: Path,
        *,
        owner: str,
        filename: str,
        purpose: str,
        lifetime_s: int | None = None,
        most_bytes: int | None = None,
    ) -> StoredFile | None:
        """Make what is at `part` a file. None where the owner would have more than `most_bytes` in all its files."""
        now = int(time.time())
        file = StoredFile(
            id=f"file-{secrets.token_hex(16)}",
            owner=owner,
            filename=filename,
            purpose=purpose,
            bytes=part.stat().st_size,
            created_at=now,
            expires_at=now + int(lifetime_s or self._retention_s),
        )
        is_added = await self._database.run(lambda connection: self._add(connection, file, part, most_bytes))
        return file if is_added else None

    def add_in(self, connection: sqlite3.Connection, part: Path, owner: str, filename: str) -> StoredFile:
        """The same within a transaction, for the output of a batch."""
        now = int(time.time())
        expires_at = now + int(self._retention_s)
        file = StoredFile(
            f"file-{secrets.token_hex(16)}", owner, filename, "batch_output", part.stat().st_size, now, expires_at
        )
        self._add(connection, file, part, None)
        return file

    async def find(self, owner: str, file_id: str) -> StoredFile | None:
        """A file of this owner."""
        query = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ?"
        row = await self._database.run(lambda connection: connection.execute(query, (file_id, owner)).fetchone())
        return None if row is None else StoredFile(*row)

    async def page(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> list[StoredFile]:
        """At most `limit` files of this owner, behind the file `after`."""

        def read(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            sign, order = ("<", "DESC") if newest_first else (">", "ASC")
            query, values = f"SELECT {_COLUMNS} FROM files WHERE owner = ?", [owner]
            if purpose is not None:
                query, values = f"{query} AND purpose = ?", [*values, purpose]
            if after is not None:
                place = "SELECT created_at, rowid FROM files WHERE id = ? AND owner = ?"
                query, values = f"{query} AND (created_at, rowid) {sign} ({place})", [*values, after, owner]
            query = f"{query} ORDER BY created_at {order}, rowid {order} LIMIT {limit}"
            return connection.execute(query, values).fetchall()

        return [StoredFile(*row) for row in await self._database.run(read)]

    async def delete(self, owner: str, file_id: str) -> bool:
        """Delete a file of this owner; False where there is none."""
        return await self._database.run(lambda connection: self._delete(connection, owner, file_id))

    async def delete_expired(self) -> None:
        """Delete what is older than it may become."""

        def delete(connection: sqlite3.Connection) -> None:
            query = "SELECT owner, id FROM files WHERE expires_at < ?"
            for owner, file_id in connection.execute(query, (time.time(),)).fetchall():
                self._delete(connection, owner, file_id)

        await self._database.run(delete)

    def _add(self, connection: sqlite3.Connection, file: StoredFile, part: Path, most_bytes: int | None) -> bool:
        if most_bytes is not None:
            (held,) = connection.execute(
                "SELECT coalesce(sum(max(bytes, ?)), 0) FROM files WHERE owner = ?", (_LEAST_BYTES, file.owner)
            ).fetchone()
            if held + max(file.bytes, _LEAST_BYTES) > most_bytes:
                return False
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(self.path(file.id))
        values = [getattr(file, name) for name in file.__struct_fields__]
        connection.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return True

    def _delete(self, connection: sqlite3.Connection, owner: str, file_id: str) -> bool:
        is_there = connection.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)).rowcount > 0
        if is_there:
            self.path(file_id).unlink(missing_ok=True)
        return is_there

    def _remove_strays(self) -> None:
        """Remove bytes without a row: of an upload or an output that a killed process was writing."""
        rows = self._database.submit(lambda connection: connection.execute("SELECT id FROM files").fetchall()).result()
        known = {file_id for (file_id,) in rows}
        for path in self._folder.iterdir():
            if path.name not in known:
                with contextlib.suppress(OSError):
                    path.unlink()


def check_space(error: OSError) -> StorageError:
    """What a client is told where its bytes cannot be written."""
    logger.error("a file cannot be written: %s", error)
    return StorageError(f"the server could not store this: {error.strerror}")
