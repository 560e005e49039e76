"""The outermost layer of the app: the id of a request, its line in the log, its span, and its place in metrics.

Plain ASGI; the events of streams pass it by (`body_writer.py`).
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jserve.api.call import Call, enter_call
from jserve.api.errors import Dialect, answer_for
from jserve.api.http.body_writer import body_writer_of
from jserve.api.http.route_paths import RoutePaths, route_path
from jserve.api.telemetry.http_metrics import UNCOUNTED_PATHS, HttpMetrics
from jserve.api.telemetry.tracing import Tracer
from jserve.log import request_fields

logger = logging.getLogger(__name__)

_NOT_IN_AN_ID = re.compile(rb"[^\x21-\x7e]")
_MAX_ID_CHARS = 128
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_CLIENT_GONE = 499
_MAX_CLIENT_CHARS = 64
_SAFE = "/:@!$&'()*+,;=~"
"""What a path may hold as it is (RFC 3986, 3.3); in the log all else is encoded again, line ends above all."""


class Edge:
    """Gives each request an id, or takes the client's `X-Request-Id`, and says how each of them ended."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: HttpMetrics,
        model_name: str,
        routes: Iterable[BaseRoute],
        tracer: Tracer | None,
        audit: Callable[[Call, int], None],
    ) -> None:
        self._app = app
        self._paths = RoutePaths(routes)
        self._metrics = metrics
        self._model_name = model_name
        self._tracer = tracer
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        path = route_path(scope)
        if (meant := self._paths.meant_by(path)) != path:
            scope["path"] = scope["path"].removesuffix(path) + meant
        call = _enter(scope)
        request_id = (b"x-request-id", call.request_id.encode())
        status = num_bytes = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                limits = call.account.headers() if call.account is not None else ()
                message["headers"] = [*message["headers"], request_id, *limits]
            else:
                num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            answer = answer_for(error)  # Logs it.
            if not status:
                await answer.response(Dialect.of(call.path))(scope, receive, send_with_id)
        finally:
            num_bytes += body_writer_of(scope).num_bytes
            self._close(scope, call, status or _CLIENT_GONE, time.monotonic() - began, num_bytes)

    def _close(self, scope: Scope, call: Call, status: int, seconds: float, num_bytes: int) -> None:
        if call.path in UNCOUNTED_PATHS:
            return
        if self._tracer is not None:
            self._tracer.record(call, status, time.time())
        if not call.goes_on:
            self._audit(call, status)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        self._metrics.observe(
            self._handler(scope, call),
            call.method,
            status,
            seconds=seconds,
            request_bytes=int(length) if length.isdigit() else 0,
            response_bytes=num_bytes,
        )
        logger.info(
            "%s %s %d in %.3f s for %s", call.method, quote(call.path, _SAFE), status, seconds, call.client,
            extra=self._describe(call, status, seconds),
        )  # fmt: skip

    def _handler(self, scope: Scope, call: Call) -> str:
        """The route that served the request, or would have."""
        route = scope.get("route")
        if route is not None:
            return str(route.path)
        return call.path if call.path in self._paths.fixed else "none"

    def _describe(self, call: Call, status: int, seconds: float) -> dict[str, Any]:
        """Fields of the structured log."""
        described: dict[str, Any] = {
            "method": call.method,
            "path": quote(call.path, _SAFE),
            "status": status,
            "client": call.client,
            "total": round(seconds, 4),
        }
        if call.lives:
            described |= {
                "model": self._model_name,
                "prompt_tokens": call.num_prompt,
                "output_tokens": call.num_output,
                "cached_tokens": call.num_cached,
                "finish_reason": ",".join(dict.fromkeys(life.finish_reason for life in call.lives)),
                "ttft": round(call.first_token - call.arrived, 4) if call.first_token else None,
            }
        return described


def _enter(scope: Scope) -> Call:
    """Start the call of this request. Handlers read its id in the headers, whoever chose it."""
    headers = dict(scope["headers"])
    request_id = _NOT_IN_AN_ID.sub(b"", headers.get(b"x-request-id", b""))[:_MAX_ID_CHARS]
    request_id = request_id or secrets.token_hex(16).encode()
    others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    scope["headers"] = [*others, (b"x-request-id", request_id)]
    trace = {name.decode(): headers[name].decode("latin-1") for name in _TRACE_HEADERS if name in headers}
    call = Call(request_id.decode(), scope["method"], route_path(scope), trace, client=_client_of(scope))
    enter_call(call)
    request_fields.set({"request_id": call.request_id})
    return call


def _client_of(scope: Scope) -> str:
    """The client's address: what the server's proxies say of it, encoded, or that of the connection."""
    client = scope.get("client")
    return quote(client[0][:_MAX_CLIENT_CHARS], ":.%") if client else "a Unix socket"
