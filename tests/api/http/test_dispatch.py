"""FastAPI's route table is the only list of routes: the short way to a handler is derived from it."""

import asyncio

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from jserve.api.app import ROUTES, build_app
from jserve.api.http.dispatch import Dispatch
from tests.api.live_server import LiveServer


async def _fixed(request: Request) -> Response:
    return PlainTextResponse("fixed")


async def _placeholder(request: Request) -> Response:
    return PlainTextResponse(request.path_params["name"])


def test_a_route_that_is_added_to_the_app_is_answered() -> None:
    app = FastAPI()
    app.add_api_route("/fixed", _fixed, methods=["GET", "POST"])
    app.add_middleware(Dispatch, routes=app.routes)
    app.add_api_route("/any/{name:path}", _placeholder, methods=["GET"])
    asyncio.run(_check(app))


async def _check(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert [(await client.request(method, "/fixed")).text for method in ("GET", "POST")] == ["fixed", "fixed"]
        assert (await client.get("/any/a/b")).text == "a/b"
        assert (await client.put("/fixed")).status_code == 405
        assert (await client.get("/none")).status_code == 404


def test_every_route_stands_in_the_table_of_the_app(server: LiveServer) -> None:
    app = build_app(server.server.context)
    table = {(method, route.path) for route in app.routes for method in getattr(route, "methods", ())}
    assert {(method, path) for method, path, _ in ROUTES} <= table
