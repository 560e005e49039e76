"""The outermost layer of the app: who may come in, the id of a request, and the count of answers.

Plain ASGI, since it wraps every event of every stream.
"""

import hmac
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jserve.api.errors import Dialect, UnauthorizedError, answer_for
from jserve.api.metrics import Metrics

_OPEN_PATHS = frozenset({"/health", "/health/decode", "/ready", "/ping"})
"""Probes carry no keys."""
_MAX_ID_CHARS = 128


class Edge:
    """Checks the key, echoes `X-Request-Id` (or gives one), counts requests by route and status."""

    def __init__(self, app: ASGIApp, *, api_keys: Iterable[str], metrics: Metrics, routes: Iterable[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")[:_MAX_ID_CHARS] or secrets.token_hex(16).encode()
        path = scope["path"]

        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
                handler = path if path in self._routes else "other"
                self._metrics.http[handler, scope["method"], message["status"]] += 1
            await send(message)

        if path not in _OPEN_PATHS and not self._is_authorized(headers):
            problem = UnauthorizedError(
                "Incorrect or missing API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
            await answer_for(problem).response(Dialect.of(path))(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            answer = answer_for(error)  # Logs it.
            if not has_started:
                await answer.response(Dialect.of(path))(scope, receive, send_with_id)

    def _is_authorized(self, headers: dict[bytes, bytes]) -> bool:
        if not self._keys:
            return True
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        offered = [headers.get(b"x-api-key", b"")]
        if scheme.lower() == b"bearer":
            offered.append(bearer.strip())
        is_known = False
        for key in self._keys:  # All of them, each in constant time, so that the time taken tells nothing.
            for offer in offered:
                is_known |= hmac.compare_digest(offer, key)
        return is_known
