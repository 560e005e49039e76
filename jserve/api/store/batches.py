"""Batches and the results of their lines, until these are written into files.

A line has a result once its transaction is done, whatever happens to the process afterwards; a line without one is
answered (again). Results are told apart by the line's number, so that none is there twice.
"""

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from jserve.api.store.database import Database
from jserve.api.store.files import FileTable

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""A batch in one of these states goes on after a restart."""


MAX_UNFINISHED = 100
"""Batches of one owner that may be under way."""


class RequestCounts(msgspec.Struct, frozen=True):
    """Lines, and how many of them have an answer or an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's batch object. Times are Unix seconds."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str | None = None
    errors: dict[str, Any] | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None

    def moved_to(self, status: str, **fields: Any) -> "Batch":
        """The batch in another state, which it has from now on."""
        return msgspec.structs.replace(self, **{"status": status, f"{status}_at": int(time.time()), **fields})


def new_batch(endpoint: str, input_file_id: str, window: str, window_s: int, metadata: dict[str, str] | None) -> Batch:
    """A batch that nobody has worked on."""
    now = int(time.time())
    return Batch(
        id=f"batch_{secrets.token_hex(16)}",
        endpoint=endpoint,
        input_file_id=input_file_id,
        completion_window=window,
        created_at=now,
        expires_at=now + window_s,
        metadata=metadata,
    )


class BatchTable:
    """The batches of all owners."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.on_added: Callable[[], None] = lambda: None
        """Called when there is a new batch."""
        self.on_cancelling: Callable[[str], None] = lambda batch_id: None
        """Called with the id of a batch that is to end."""

    async def add(self, owner: str, batch: Batch) -> bool:
        """Keep a new batch; False where the owner has `MAX_UNFINISHED` already."""

        def write(connection: sqlite3.Connection) -> bool:
            count = "SELECT count(*) FROM batches WHERE owner = ? AND is_open = 1"
            (unfinished,) = connection.execute(count, (owner,)).fetchone()
            if unfinished >= MAX_UNFINISHED:
                return False
            query = "INSERT INTO batches (id, owner, is_open, created_at, body) VALUES (?, ?, 1, ?, ?)"
            connection.execute(query, (batch.id, owner, batch.created_at, msgspec.json.encode(batch)))
            return True

        return await self._database.run(write)

    async def delete_made_before(self, moment: float) -> None:
        """Forget batches that are over and were made before `moment`. Their files have their own ends."""
        query = "DELETE FROM batches WHERE is_open = 0 AND created_at < ?"
        await self._database.run(lambda connection: connection.execute(query, (moment,)))

    async def find(self, owner: str, batch_id: str) -> Batch | None:
        """A batch of this owner, with how far it is."""
        return await self._database.run(lambda connection: _find(connection, owner, batch_id))

    async def page(self, owner: str, *, after: str | None, limit: int) -> list[Batch]:
        """At most `limit` batches of this owner, the newest first, behind the batch `after`."""

        def read(connection: sqlite3.Connection) -> list[Batch]:
            query, values = "SELECT body FROM batches WHERE owner = ?", [owner]
            if after is not None:
                place = "SELECT created_at, rowid FROM batches WHERE id = ? AND owner = ?"
                query, values = f"{query} AND (created_at, rowid) < ({place})", [*values, after, owner]
            query = f"{query} ORDER BY created_at DESC, rowid DESC LIMIT {limit}"
            return [_decoded(connection, body) for (body,) in connection.execute(query, values).fetchall()]

        return await self._database.run(read)

    async def unfinished(self) -> list[tuple[str, Batch]]:
        """Owners and their batches that are not over, the oldest first."""

        def read(connection: sqlite3.Connection) -> list[tuple[str, Batch]]:
            rows = connection.execute("SELECT owner, body FROM batches WHERE is_open = 1 ORDER BY created_at, rowid")
            return [(owner, _decoded(connection, body)) for owner, body in rows.fetchall()]

        return await self._database.run(read)

    async def move(self, batch_id: str, status: str, *, unless: tuple[str, ...] = (), **fields: Any) -> Batch | None:
        """Change a batch's state. None, and nothing happens, where its state is one of `unless`."""

        def write(connection: sqlite3.Connection) -> Batch | None:
            (body,) = connection.execute("SELECT body FROM batches WHERE id = ?", (batch_id,)).fetchone()
            batch = msgspec.json.decode(body, type=Batch)
            if batch.status in unless:
                return None
            return _save(connection, batch.moved_to(status, **fields))

        return await self._database.run(write)

    async def add_result(self, batch_id: str, line: int, is_error: bool, body: bytes) -> None:
        """Keep the result of a line, where it has none yet."""
        query = "INSERT OR IGNORE INTO results (batch_id, line, is_error, body) VALUES (?, ?, ?, ?)"
        await self._database.run(lambda connection: connection.execute(query, (batch_id, line, is_error, body)))

    async def answered_lines(self, batch_id: str, first: int, end: int) -> set[int]:
        """The numbers from `first` up to `end` that have results."""
        query = "SELECT line FROM results WHERE batch_id = ? AND line >= ? AND line < ?"
        rows = await self._database.run(lambda db: db.execute(query, (batch_id, first, end)).fetchall())
        return {line for (line,) in rows}

    async def finish(
        self, owner: str, batch_id: str, status: str, files: FileTable, *, errors: dict[str, Any] | None = None
    ) -> None:
        """Make files of the results and end the batch, in one transaction."""

        def write(connection: sqlite3.Connection) -> None:
            batch = _find(connection, owner, batch_id)
            assert batch is not None
            ids: dict[bool, str | None] = {}
            for is_error, ending in ((False, "output"), (True, "error")):
                part = files.new_path()
                count = write_results(connection, batch_id, part, is_error=is_error)
                file = files.add_in(connection, part, owner, f"{batch_id}_{ending}.jsonl") if count else None
                part.unlink(missing_ok=True)
                ids[is_error] = file.id if file is not None else None
            ended = batch.moved_to(status, output_file_id=ids[False], error_file_id=ids[True], errors=errors)
            _save(connection, ended)
            connection.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))

        await self._database.run(write)

    async def write_all(self, batch_id: str, path: Path) -> None:
        """Write all results to `path`, whole or not at all."""
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

        def write(connection: sqlite3.Connection) -> None:
            try:
                write_results(connection, batch_id, part)
                with part.open("rb") as written:
                    os.fsync(written.fileno())
                part.replace(path)
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

        await self._database.run(write)


def write_results(connection: sqlite3.Connection, batch_id: str, path: Path, *, is_error: bool | None = None) -> int:
    """Write the results in the order of their lines, or those of one kind. Returns how many they are."""
    query, values = "SELECT body FROM results WHERE batch_id = ?", [batch_id, *([] if is_error is None else [is_error])]
    query += "" if is_error is None else " AND is_error = ?"
    count = 0
    with path.open("wb") as file:
        for (body,) in _rows(connection, f"{query} ORDER BY line", values):
            file.write(body + b"\n")
            count += 1
    return count


def _rows(connection: sqlite3.Connection, query: str, values: list[Any]) -> Iterator[tuple[bytes]]:
    yield from connection.execute(query, values)


def _find(connection: sqlite3.Connection, owner: str, batch_id: str) -> Batch | None:
    row = connection.execute("SELECT body FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)).fetchone()
    return None if row is None else _decoded(connection, row[0])


def _decoded(connection: sqlite3.Connection, body: bytes) -> Batch:
    batch = msgspec.json.decode(body, type=Batch)
    return _counted(connection, batch) if batch.status in UNFINISHED else batch


def _counted(connection: sqlite3.Connection, batch: Batch) -> Batch:
    """The batch with how many of its lines have results so far."""
    query = "SELECT count(*), coalesce(sum(is_error), 0) FROM results WHERE batch_id = ?"
    done, failed = connection.execute(query, (batch.id,)).fetchone()
    counts = RequestCounts(batch.request_counts.total, done - failed, failed)
    return msgspec.structs.replace(batch, request_counts=counts)


def _save(connection: sqlite3.Connection, batch: Batch) -> Batch:
    values = (msgspec.json.encode(batch), batch.status in UNFINISHED, batch.id)
    connection.execute("UPDATE batches SET body = ?, is_open = ? WHERE id = ?", values)
    return batch
