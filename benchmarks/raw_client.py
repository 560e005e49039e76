"""A client that costs little: raw HTTP/1.1 on sockets in one epoll loop, in a process of its own.

`python -m benchmarks.raw_client` reads one JSON load from standard input and prints what came of it. It looks only
at the ends of answers: tokens are the server's `usage`, and a text event is a `data: ` in what a read brought. The
CPU time of the server's processes is read right before the first byte and right after the last.
"""

import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence

import msgspec

from benchmarks.process_cpu import CpuTimes, machine_times, read_cpu

_READ_SIZE = 1 << 18
_TAIL_BYTES = 4096
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_LAST_CHUNK = b"0\r\n\r\n"


class Load(msgspec.Struct, frozen=True):
    """What to send: each connection sends its bodies one after the other. `server_pid` is the server's root."""

    host: str
    port: int
    path: str
    bodies: list[list[msgspec.Raw]]
    server_pid: int
    timeout_s: float = 300.0


class LoadResult(msgspec.Struct, frozen=True):
    """What came. `gaps_ms` are the times between reads with text of one stream, all streams, sorted.

    `cpu` is what each of the server's processes used, `client_cpu_s` what this one did, `others_share` the share of
    all cores that went to anybody else.
    """

    seconds: float
    requests: int
    tokens: int
    events: int
    reads: int
    first_text_ms: list[float]
    gaps_ms: list[float]
    cpu: list[CpuTimes]
    client_cpu_s: float
    others_share: float


class Connection:
    """One keep-alive connection and its requests."""

    def __init__(self, load: Load, bodies: Sequence[msgspec.Raw]) -> None:
        self.socket = socket.create_connection((load.host, load.port), timeout=load.timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = [_request(load, bytes(body)) for body in reversed(bodies)]
        self.tokens = self.events = self.reads = 0
        self.first_text_ms: list[float] = []
        self.gaps_ms: list[float] = []

    def send_next(self) -> bool:
        """Send the next request. False where there is none."""
        if not self._requests:
            return False
        self._tail = b""
        self._has_head = False
        self._left: int | None = None
        self._last_text = 0.0
        self._sent = time.perf_counter()
        self.socket.sendall(self._requests.pop())
        return True

    def read(self) -> bool:
        """Take in what has come. True where the answer is complete. Raises OSError or RuntimeError."""
        data = self.socket.recv(_READ_SIZE)
        now = time.perf_counter()
        if not data:
            raise RuntimeError(f"the server closed a connection before the end of its answer: {self._tail!r}")
        self.reads += 1
        if count := data.count(b"data: "):
            self.events += count
            if self._last_text:
                self.gaps_ms.append((now - self._last_text) * 1e3)
            else:
                self.first_text_ms.append((now - self._sent) * 1e3)
            self._last_text = now
        if not self._has_head:
            data = self._skip_head(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._left is not None:
            self._left -= len(data)
        return self._finish() if self._has_head and self._is_complete() else False

    def _skip_head(self, data: bytes) -> bytes:
        head, separator, rest = (self._tail + data).partition(b"\r\n\r\n")
        if not separator:
            return data
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server refused a request: {head[:200]!r} {rest[:500]!r}")
        self._has_head = True
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else None
        self._tail = b""
        return rest

    def _is_complete(self) -> bool:
        return self._tail.endswith(_LAST_CHUNK) if self._left is None else self._left <= 0

    def _finish(self) -> bool:
        usage = _USAGE.findall(self._tail)
        if not usage:
            raise RuntimeError(f"an answer has no usage: {self._tail[-500:]!r}")
        self.tokens += int(usage[-1])
        return True


def _request(load: Load, body: bytes) -> bytes:
    head = (
        f"POST {load.path} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run(load: Load) -> LoadResult:
    """Send everything and wait for all of it. Raises RuntimeError or OSError where an answer fails."""
    connections = [Connection(load, bodies) for bodies in load.bodies]
    own, server, idle = time.process_time(), read_cpu(load.server_pid), machine_times()
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.send_next()
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        num_open = len(connections)
        while num_open:
            ready = selector.select(load.timeout_s)
            if not ready:
                raise RuntimeError(f"the server sent nothing for {load.timeout_s:g} s")
            for key, _ in ready:
                connection = key.data
                if connection.read() and not connection.send_next():
                    selector.unregister(connection.socket)
                    num_open -= 1
    seconds = time.perf_counter() - began
    cpu = [after.since(before) for before, after in _pairs(server, read_cpu(load.server_pid))]
    client = time.process_time() - own
    busy = idle.busy_since(machine_times())
    mine = client + sum(times.user + times.system for times in cpu)
    return LoadResult(
        seconds=seconds,
        requests=sum(map(len, load.bodies)),
        tokens=sum(connection.tokens for connection in connections),
        events=sum(connection.events for connection in connections),
        reads=sum(connection.reads for connection in connections),
        first_text_ms=sorted(value for connection in connections for value in connection.first_text_ms),
        gaps_ms=sorted(value for connection in connections for value in connection.gaps_ms),
        cpu=cpu,
        client_cpu_s=client,
        others_share=max(0.0, busy - mine) / (seconds * idle.num_cores),
    )


def _pairs(before: Sequence[CpuTimes], after: Sequence[CpuTimes]) -> list[tuple[CpuTimes, CpuTimes]]:
    """Each process as it was and is; one that was born in between began with nothing."""
    known = {times.pid: times for times in before}
    return [(known.get(times.pid) or times.zero(), times) for times in after]


def main() -> int:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(run(load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
