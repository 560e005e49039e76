"""How a helper process gets its jobs: frames of a length and a body on a socket, answered one after the other."""

import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

LENGTH = struct.Struct("<I")
"""What every frame begins with."""


def serve_jobs(connection: socket.socket, start: Callable[[Any], Callable[[Any], bytes]]) -> None:
    """Give the first frame to `start` and all others to what it returns, until the socket ends.

    Frames come pickled, from the process that started this one; answers go back as bytes. An empty answer to the
    first says that jobs are welcome.
    """
    frames = connection.makefile("rb")
    work = start(_read(frames))
    _send(connection, b"")
    while (job := _read(frames)) is not None:
        _send(connection, work(job))


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(LENGTH.pack(len(body)) + body)


def _read(frames: BinaryIO) -> Any:
    head = frames.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pickle.loads(frames.read(LENGTH.unpack(head)[0]))
