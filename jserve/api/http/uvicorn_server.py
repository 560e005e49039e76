"""uvicorn as this server runs it: on a socket that listens already, without signal handlers, logs and websockets.

This file, `http_protocol.py`, `body_writer.py` and `read_gate.py` are the only ones that know uvicorn, and
`tests/api/http/test_private_attributes.py` names every part of it that they use and that its documentation does not
promise.
"""

import contextlib
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from jserve.api.http.descriptors import connection_limit
from jserve.api.http.http_protocol import http_protocol
from jserve.api.settings import ServerSettings

_KEEP_ALIVE_S = 65
"""Longer than the usual 60 s of load balancers, which would otherwise write to a connection just closed."""
CLOSE_S = 2
"""What connections get to close once all answers are complete."""


def largest_body(settings: ServerSettings) -> int:
    """Bytes of the largest body that any route takes."""
    return max(settings.max_request_bytes, settings.max_file_bytes if settings.storage_dir is not None else 0)


class UvicornServer(uvicorn.Server):
    """uvicorn without its signal handlers, which know nothing of draining."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._settings = settings
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=http_protocol(
                    settings.receive_timeout_s,
                    largest_body(settings),
                    connection_limit(settings.max_connections),
                ),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CLOSE_S,
                timeout_keep_alive=_KEEP_ALIVE_S,
                root_path=settings.root_path,
                forwarded_allow_ips="*" if settings.uds is not None else settings.forwarded_allow_ips,
                ssl_keyfile=settings.ssl_keyfile,
                ssl_certfile=settings.ssl_certfile,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Take no more connections, close those that are idle, and end `serve`."""
        self.should_exit = True

    def reload_certificate(self) -> None:
        """Read key and certificate again, for connections that are made from now on. Raises OSError, ssl.SSLError.

        Files that cannot be used change nothing.
        """
        settings = self._settings
        context = self.config.ssl
        if context is None or settings.ssl_certfile is None:
            return
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
