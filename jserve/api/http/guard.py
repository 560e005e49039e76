"""Who may come in: the host's name, the API key, and what its limits leave it. Stands before all routes but probes."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from jserve.api.access.account import Accounts
from jserve.api.access.keys import KeyRing
from jserve.api.call import current_call
from jserve.api.errors import Dialect, UnauthorizedError, answer_for
from jserve.api.http.host_names import HostNames
from jserve.api.http.playground import is_browser_at_root
from jserve.api.http.route_paths import route_path
from jserve.errors import RateLimitError
from jserve.log import request_fields

OPEN_PATHS = frozenset({"/health", "/health/decode", "/ready", "/ping"})
"""Probes carry no keys."""

_MAX_SHOWN = 100


class Guard:
    """Answers 403 to a name that is not this server's, 401 without a valid key, and 429 above a limit.

    The path is the one that the router will match.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: HostNames, keys: KeyRing, accounts: Accounts, open_paths: frozenset[str]
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._keys = keys
        self._accounts = accounts
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in self._open_paths or is_browser_at_root(scope):
            await self._app(scope, receive, send)
            return
        if (host := self._hosts.refused_in(scope)) is not None:
            message = (
                f"{host[:_MAX_SHOWN]!r} is not known as a name of this server; where it is one, start the server with "
                "--allowed-hosts and that name ('*' allows all), or with a key"
            )
            await _answer(HTTPException(403, message), scope, receive, send)
            return
        key = self._keys.find(dict(scope["headers"]))
        if key is None:
            problem: Exception = UnauthorizedError(
                "Incorrect or missing API key; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
            await _answer(problem, scope, receive, send)
            return
        call = current_call()
        call.key, call.account, call.is_let_in = key, self._accounts.of(key), True
        if not key.is_anonymous:
            request_fields.set({**request_fields.get({}), "key_id": key.id})
        if call.account is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            call.account.open_request()
            call.num_places = 1
        except RateLimitError as error:
            await _answer(error, scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            call.account.close(call.num_places)


async def _answer(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    await answer_for(error).response(Dialect.of(route_path(scope)))(scope, receive, send)
