"""The ASGI app while its routes are still being imported: liveness is answered at once, the rest waits."""

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jserve.api.http.route_paths import route_path

_LIVENESS = frozenset({"/health", "/ping"})


class EarlyApp:
    """Stands in front of an app that takes half a second to import.

    Until `load` is done, /health and /ping say that the process lives, which is all that they say while an engine
    loads; any other request waits for the app.
    """

    def __init__(self, build: Callable[[], ASGIApp], is_alive_enough: bool = True) -> None:
        """`is_alive_enough`: /health speaks of the process, not of the model."""
        self._build = build
        self._liveness_status = 200 if is_alive_enough else 503
        self._app: ASGIApp | None = None
        self._loaded = asyncio.Event()

    async def load(self) -> None:
        """Build the app in a thread, so that the event loop goes on answering."""
        self._app = await asyncio.to_thread(self._build)
        self._loaded.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            if scope["type"] == "http" and route_path(scope) in _LIVENESS:
                await Response(status_code=self._liveness_status)(scope, receive, send)
                return
            await self._loaded.wait()
            assert self._app is not None
        await self._app(scope, receive, send)
