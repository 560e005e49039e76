"""The listening socket, taken before anything slow starts, so that a used port is told at once."""

import errno
import socket

from jserve.errors import StartupError

_BACKLOG = 2048


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
