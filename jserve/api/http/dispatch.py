"""Calls the handlers of routes whose path is fixed.

FastAPI's way to a handler (matching, dependencies, exit stacks) costs a sixth of a short chat request, and finds the
same one. It keeps what needs it: paths with placeholders, its own pages, and everything that is no route.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jserve.api.errors import EXPECTED_ERRORS, handle_error
from jserve.api.path import route_path

Handler = Callable[[Request], Awaitable[Response]]


class Dispatch:
    """The innermost layer: what it does not know goes on to `app`."""

    def __init__(self, app: ASGIApp, *, handlers: Mapping[tuple[str, str], Handler]) -> None:
        """`handlers` by method and path."""
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http":
            handler = self._handlers.get((scope["method"], route_path(scope)))
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except EXPECTED_ERRORS as error:
            response = await handle_error(request, error)
        await response(scope, receive, send)
