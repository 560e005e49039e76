"""The listening socket, taken before anything slow starts, so that a used port is told at once."""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from jserve.api.settings import ServerSettings
from jserve.errors import StartupError

_BACKLOG = 2048


def listen_on(settings: ServerSettings) -> socket.socket:
    """The socket of a server with these settings. Raises StartupError where the address cannot be had."""
    if settings.uds is not None:
        return listen_at(settings.uds)
    return listen(settings.host, settings.port)


def listen_at(path: Path) -> socket.socket:
    """A Unix socket; one that a server has left there, and where nobody listens, is replaced. Raises StartupError."""
    _remove_abandoned(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"--uds: {path} is there already and is in use, or is no socket") from error
        raise StartupError(f"--uds: cannot listen on {path}: {error}") from error
    return listener


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections already. Raises StartupError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(_describe(host, port, error)) from error
    return listener


def _describe(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program; stop it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges that this user does not have; choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error}; check --host and --port"
