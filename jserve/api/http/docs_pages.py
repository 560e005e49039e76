"""`/docs` and `/redoc`: FastAPI's pages about the API, whose scripts are served from here and not from elsewhere."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
}
_NO_ICON = "data:,"


async def docs(request: Request) -> Response:
    """Swagger UI."""
    prefix = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title="jserve",
        swagger_js_url=f"{prefix}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}/docs/swagger-ui.css",
        swagger_favicon_url=_NO_ICON,
    )


async def redoc(request: Request) -> Response:
    """ReDoc."""
    prefix = request.scope.get("root_path", "")
    return get_redoc_html(
        openapi_url=f"{prefix}/openapi.json",
        title="jserve",
        redoc_js_url=f"{prefix}/docs/redoc.standalone.js",
        redoc_favicon_url=_NO_ICON,
        with_google_fonts=False,
    )


async def docs_asset(request: Request) -> Response:
    """A script or style of the pages, as the package `fastapi-offline` carries it."""
    name = request.path_params["name"]
    if name not in _TYPES:
        raise HTTPException(404, f"/docs/{name} does not exist; /docs and /redoc are the pages")
    return Response(_asset(name), media_type=_TYPES[name], headers={"Cache-Control": "max-age=86400"})


@lru_cache(maxsize=len(_TYPES))
def _asset(name: str) -> bytes:
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("static").joinpath(name).read_bytes()


DOCS_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/docs", docs),
    ("GET", "/redoc", redoc),
    ("GET", "/docs/{name}", docs_asset),
)
