"""Memory for the bodies of requests that are not parsed yet, of all clients together.

Each body may be as large as `--max-request-bytes`, and a client may take minutes to send one; many such at once would
be gigabytes. Where their sum goes beyond its bound, the largest of those that are still coming gives way.
"""

import asyncio

_SMALL = 1 << 16
"""A body up to here is never given up: those who send such ones are not those who fill the memory."""


class IncomingBody:
    """One body. It is being received until `deadline` is None."""

    __slots__ = ("deadline", "is_given_up", "parts", "size")

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self.deadline: asyncio.Timeout | None = deadline
        self.parts: list[bytes] = []
        self.size = 0
        self.is_given_up = False


class IncomingBodies:
    """The bodies of one server. All methods belong to the event loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._bodies: set[IncomingBody] = set()

    def open(self, deadline: asyncio.Timeout) -> IncomingBody:
        """A body that is about to come. `deadline` is brought forward to now where the body must be given up."""
        body = IncomingBody(deadline)
        self._bodies.add(body)
        return body

    def add(self, body: IncomingBody, part: bytes) -> None:
        """Keep a part of `body`. Where there is no room, the largest is given up, which may be `body` itself."""
        while self.num_bytes + len(part) > self.max_bytes:
            coming = [each for each in self._bodies if each.deadline is not None and each.size > _SMALL]
            if not coming:
                break
            self._give_up(max(coming, key=lambda each: each.size))
            if body.is_given_up:
                return
        body.parts.append(part)
        body.size += len(part)
        self.num_bytes += len(part)

    def complete(self, body: IncomingBody) -> bytes:
        """All of it, once it has come. It counts until it is closed."""
        body.deadline = None
        whole = b"".join(body.parts)
        body.parts.clear()
        return whole

    def close(self, body: IncomingBody) -> None:
        """It is parsed, or will not come."""
        self._bodies.discard(body)
        self.num_bytes -= body.size
        body.size = 0

    def _give_up(self, body: IncomingBody) -> None:
        assert body.deadline is not None
        body.is_given_up = True
        body.parts.clear()
        self.close(body)
        body.deadline.reschedule(asyncio.get_running_loop().time())
