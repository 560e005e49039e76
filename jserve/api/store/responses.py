"""Responses that are remembered: each with its own input, and the one that it continues.

A conversation is the chain of its responses. Each owner has so many bytes; where they are full, what was used longest
ago is forgotten. Whoever continues a response uses all of its chain.
"""

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from jserve.api.store.database import Database

MAX_BYTES_OF_OWNER = 64 << 20
MAX_BYTES = 8 << 20
"""A larger response is not remembered."""
MAX_CHAIN = 1_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One response: the items of its own input, and the response object, both as JSON."""

    id: str
    previous_id: str | None
    input: bytes
    body: bytes
    is_open: bool

    def response(self) -> dict[str, Any]:
        """The response object."""
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded

    def input_items(self) -> list[dict[str, Any]]:
        """The items that were sent with it."""
        decoded: list[dict[str, Any]] = msgspec.json.decode(self.input)
        return decoded


class ResponseTable:
    """The responses of all owners."""

    def __init__(self, database: Database, max_bytes_of_owner: int = MAX_BYTES_OF_OWNER) -> None:
        self._database = database
        self._max_bytes_of_owner = max_bytes_of_owner

    def put(self, owner: str, turn: Turn, *, only_if_open: bool = False) -> None:
        """Keep a response, in the place of an older one of this id. Does not wait.

        `only_if_open`: where that is there and not complete yet, so that what was cancelled or deleted stays so.
        """
        size = len(turn.input) + len(turn.body)
        if size > MAX_BYTES:
            return

        def write(connection: sqlite3.Connection) -> None:
            if only_if_open and not _is_open(connection, owner, turn.id):
                return
            now = time.time()
            values = (owner, turn.id, turn.previous_id, int(now), now, size, turn.input, turn.body, turn.is_open)
            connection.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._forget(connection, owner)

        self._database.submit(write)

    async def find(self, owner: str, response_id: str) -> Turn | None:
        """A response of this owner."""
        return await self._database.run(lambda connection: _find(connection, owner, response_id))

    async def chain(self, owner: str, response_id: str) -> list[Turn] | None:
        """The conversation up to a response, the oldest turn first; None where a part of it is not there (any more)."""

        def read(connection: sqlite3.Connection) -> list[Turn] | None:
            turns: dict[str, Turn] = {}
            next_id: str | None = response_id
            while next_id is not None:
                turn = _find(connection, owner, next_id)
                if turn is None or next_id in turns or len(turns) == MAX_CHAIN:
                    return None
                turns[next_id] = turn
                next_id = turn.previous_id
            now = time.time()
            for number, each in enumerate(turns):  # An older turn must not be forgotten before a newer one.
                query = "UPDATE responses SET used_at = ? WHERE owner = ? AND id = ?"
                connection.execute(query, (now + number * 1e-6, owner, each))
            return list(reversed(turns.values()))

        return await self._database.run(read)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Forget a response; False where there is none."""
        query = "DELETE FROM responses WHERE owner = ? AND id = ?"
        return await self._database.run(lambda connection: connection.execute(query, (owner, response_id)).rowcount > 0)

    async def delete_used_before(self, moment: float) -> None:
        """Forget what nobody has used since `moment`."""
        query = "DELETE FROM responses WHERE used_at < ? AND NOT is_open"
        await self._database.run(lambda connection: connection.execute(query, (moment,)))

    async def open_ones(self) -> list[tuple[str, Turn]]:
        """Owners and responses that were being answered when the process ended."""
        query = "SELECT owner, id, previous_id, input, body, is_open FROM responses WHERE is_open"
        rows = await self._database.run(lambda connection: connection.execute(query).fetchall())
        return [(row[0], _turn(row[1:])) for row in rows]

    def _forget(self, connection: sqlite3.Connection, owner: str) -> None:
        query = "SELECT coalesce(sum(bytes), 0) FROM responses WHERE owner = ?"
        (held,) = connection.execute(query, (owner,)).fetchone()
        oldest = "SELECT id, bytes FROM responses WHERE owner = ? AND NOT is_open ORDER BY used_at LIMIT 64"
        while held > self._max_bytes_of_owner and (rows := connection.execute(oldest, (owner,)).fetchall()):
            for response_id, size in rows:
                if held > self._max_bytes_of_owner:
                    connection.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, response_id))
                    held -= size


def _find(connection: sqlite3.Connection, owner: str, response_id: str) -> Turn | None:
    query = "SELECT id, previous_id, input, body, is_open FROM responses WHERE owner = ? AND id = ?"
    row = connection.execute(query, (owner, response_id)).fetchone()
    return None if row is None else _turn(row)


def _turn(row: tuple[Any, ...]) -> Turn:
    response_id, previous_id, input_, body, is_open = row
    return Turn(response_id, previous_id, input_, body, bool(is_open))


def _is_open(connection: sqlite3.Connection, owner: str, response_id: str) -> bool:
    turn = _find(connection, owner, response_id)
    return turn is not None and turn.is_open
