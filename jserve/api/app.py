"""The routes, put together."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from jserve.api import probes
from jserve.api.chat import chat_completions
from jserve.api.completions import completions
from jserve.api.context import ServerContext
from jserve.api.edge import Edge
from jserve.api.errors import EXPECTED_ERRORS, handle_error


def build_app(server: ServerContext) -> Starlette:
    """The ASGI app of one server."""
    routes = [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", probes.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", probes.show_model, methods=["GET"]),
        Route("/health", probes.health, methods=["GET"]),
        Route("/health/decode", probes.health_decode, methods=["GET"]),
        Route("/ready", probes.ready, methods=["GET"]),
        Route("/ping", probes.ping, methods=["GET", "POST"]),
        Route("/version", probes.version, methods=["GET"]),
        Route("/metrics", probes.metrics, methods=["GET"]),
    ]
    edge = Middleware(
        Edge,
        api_keys=server.settings.api_keys,
        metrics=server.metrics,
        routes=[route.path for route in routes],
    )
    app = Starlette(
        routes=routes,
        middleware=[edge],
        exception_handlers=dict.fromkeys(EXPECTED_ERRORS, handle_error),
    )
    app.state.server = server
    return app
