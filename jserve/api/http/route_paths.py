"""The path of a request as the routes know it: without a proxy's prefix, and without slashes too many.

`//v1/models`, `/v1//models` and `/v1/models/` are `/v1/models`: clients join base URLs to paths with a slash too many.
A redirect would lose the body with most of them, and name this server's own host where a proxy stands in front, so the
route answers in place.
"""

import re
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Scope

_SLASHES = re.compile("/{2,}")


def route_path(scope: Scope) -> str:
    """The path that routes are matched against: without the prefix (`root_path`) that a proxy in front takes away."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(prefix) and path[len(prefix) :][:1] in ("", "/"):
        return path[len(prefix) :]
    return path


class RoutePaths:
    """The paths of the routes in an app's table."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        paths = [route.path for route in routes if isinstance(route, APIRoute)]
        self.fixed = frozenset(path for path in paths if "{" not in path)
        """Those without a placeholder."""
        self._beginnings = {
            beginning: re.compile("/+".join(map(re.escape, beginning[:-1].split("/"))) + "/")
            for beginning in dict.fromkeys(path.partition("{")[0] for path in paths if "{" in path)
        }

    def meant_by(self, path: str) -> str:
        """`path` without slashes too many. What stands for a placeholder, such as a model's path, keeps its own."""
        if path in self.fixed or not (path.endswith("/") or "//" in path):
            return path
        plain = _SLASHES.sub("/", path).rstrip("/") or "/"
        if plain in self.fixed:
            return plain
        for beginning, pattern in self._beginnings.items():
            if (match := pattern.match(path)) is not None:
                return beginning + path[match.end() :].rstrip("/")
        return plain
