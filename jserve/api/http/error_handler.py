"""What FastAPI and `Dispatch` call where a handler has raised one of `EXPECTED_ERRORS`."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.errors import Dialect, answer_for
from jserve.api.http.route_paths import route_path


async def handle_error(request: Request, error: Exception) -> Response:
    """The answer in the words of the route, with the headers that the error brings."""
    response = answer_for(error).response(Dialect.of(route_path(request.scope)))
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response
