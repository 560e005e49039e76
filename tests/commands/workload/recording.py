"""A recorder in a thread of this process, and an upstream that says just the bytes that it is told to say."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from jserve.api.telemetry.workload import RecordedRequest, TraceFile, read_trace
from jserve.commands.workload.recorder import Recorder, Upstream, record
from tests.patience import PATIENCE_S


class Recording:
    """`url` is where clients connect; `requests` is what was written."""

    def __init__(self, url: str, trace: Path) -> None:
        self.url = url
        self._trace = trace

    def requests(self) -> list[RecordedRequest]:
        return list(read_trace(self._trace))


@contextlib.contextmanager
def recording(upstream: str, trace: Path) -> Iterator[Recording]:
    """Record in front of `upstream` for as long as the context lasts."""
    file = TraceFile(trace)
    recorder = Recorder(Upstream(upstream), file.write)
    started = threading.Event()
    ports: list[int] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def serve() -> None:
        task = asyncio.create_task(record(recorder, "127.0.0.1", 0, lambda port: (ports.append(port), started.set())))
        loops.append((asyncio.get_running_loop(), task))
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        yield Recording(f"http://127.0.0.1:{ports[0]}", trace)
    finally:
        loop, task = loops[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(PATIENCE_S)
        file.close()


@contextlib.contextmanager
def canned(parts: Sequence[bytes], heard: bytearray, *, wanted: int) -> Iterator[str]:
    """The URL of a server that reads `wanted` bytes into `heard`, sends the parts one by one, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while len(heard) < wanted and (data := connection.recv(65536)):
                    heard.extend(data)
                for part in parts:
                    connection.sendall(part)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE_S)


def exchange(url: str, request: bytes) -> bytes:
    """What comes back for these bytes, to the end of the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        answer = bytearray()
        while data := connection.recv(65536):
            answer += data
    return bytes(answer)
