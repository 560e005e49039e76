"""The path of a request as the routes know it: without the prefix (`root_path`) that a proxy in front takes away."""

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path that routes are matched against."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(prefix) and path[len(prefix) :][:1] in ("", "/"):
        return path[len(prefix) :]
    return path
