"""Calls the handlers of routes whose path is fixed, straight from FastAPI's route table.

FastAPI's way to a handler (matching, dependencies, exit stacks) costs a sixth of a short chat request, and finds the
same one. It keeps what needs it: paths with placeholders, its own pages, and everything that is no route.
"""

from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from jserve.api.errors import EXPECTED_ERRORS
from jserve.api.http.error_handler import handle_error
from jserve.api.http.route_paths import route_path


class Dispatch:
    """The innermost layer: what it does not know goes on to `app`."""

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute]) -> None:
        """`routes` is the table of the app, as it stands when the first request comes."""
        self._app = app
        self._handlers = {
            (method, route.path): route.endpoint
            for route in routes
            if isinstance(route, APIRoute) and "{" not in route.path
            for method in route.methods or ()
        }

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
