"""The routes, put together. Bodies are read and checked by the handlers (`body.py`), whose errors follow the
contract; FastAPI routes, and describes the bodies in `/openapi.json`.
"""

import re
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from jserve.api import probes
from jserve.api.anthropic.body import CountTokensBody, MessagesBody
from jserve.api.anthropic.route import count_tokens, messages
from jserve.api.context import ServerContext
from jserve.api.errors import EXPECTED_ERRORS
from jserve.api.http.description import describe_route
from jserve.api.http.dispatch import Dispatch
from jserve.api.http.docs_pages import DOCS_ROUTES
from jserve.api.http.edge import Edge
from jserve.api.http.error_handler import handle_error
from jserve.api.http.guard import OPEN_PATHS, Guard
from jserve.api.http.host_names import HostNames
from jserve.api.http.playground import PATH as PLAYGROUND
from jserve.api.http.playground import playground, root
from jserve.api.ollama.routes import OLLAMA_BODIES, OLLAMA_ROUTES
from jserve.api.openai.batch.route import BatchBody, cancel_batch, create_batch, list_batches, show_batch
from jserve.api.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from jserve.api.openai.chat import chat_completions
from jserve.api.openai.completions import completions
from jserve.api.openai.embeddings import embeddings
from jserve.api.openai.files import delete_file, file_content, list_files, show_file, upload_file
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.openai.responses_api.route import (
    cancel_response,
    count_input_tokens,
    delete_response,
    list_input_items,
    responses,
    show_response,
)
from jserve.api.openai.scoring import SCORING_BODIES, SCORING_ROUTES
from jserve.api.openai.tokenize import detokenize, tokenize, tokenizer_info
from jserve.version import __version__

ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/responses", responses),
    ("POST", "/v1/responses/input_tokens", count_input_tokens),
    ("GET", "/v1/responses/{response_id}", show_response),
    ("GET", "/v1/responses/{response_id}/input_items", list_input_items),
    ("DELETE", "/v1/responses/{response_id}", delete_response),
    ("POST", "/v1/responses/{response_id}/cancel", cancel_response),
    ("POST", "/v1/messages", messages),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    ("POST", "/v1/embeddings", embeddings),
    ("POST", "/v1/files", upload_file),
    ("GET", "/v1/files", list_files),
    ("GET", "/v1/files/{file_id}", show_file),
    ("DELETE", "/v1/files/{file_id}", delete_file),
    ("GET", "/v1/files/{file_id}/content", file_content),
    ("POST", "/v1/batches", create_batch),
    ("GET", "/v1/batches", list_batches),
    ("GET", "/v1/batches/{batch_id}", show_batch),
    ("POST", "/v1/batches/{batch_id}/cancel", cancel_batch),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/tokenizer_info", tokenizer_info),
    *SCORING_ROUTES,
    ("GET", "/v1/models", probes.list_models),
    ("GET", "/v1/models/{name:path}", probes.show_model),
    ("GET", "/health", probes.health),
    ("GET", "/health/decode", probes.health_decode),
    ("GET", "/ready", probes.ready),
    ("GET", "/ping", probes.ping),
    ("POST", "/ping", probes.ping),
    ("GET", "/version", probes.version),
    ("GET", "/load", probes.load),
    ("GET", "/metrics", probes.metrics),
    ("GET", "/", root),
    ("GET", PLAYGROUND, playground),
    *DOCS_ROUTES,
    *OLLAMA_ROUTES,
)
"""What `build_app` puts into FastAPI's route table, from which all else that knows routes is derived."""
EXPOSED_HEADERS = (
    "X-Request-Id",
    "Retry-After",
    *(f"x-ratelimit-{name}-{kind}" for kind in ("requests", "tokens") for name in ("limit", "remaining", "reset")),
)
"""What scripts of other sites may read."""
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponsesBody,
    "/v1/responses/input_tokens": ResponsesBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/batches": BatchBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
    **SCORING_BODIES,
    **OLLAMA_BODIES,
    "/v1/messages": MessagesBody,
    "/v1/messages/count_tokens": CountTokensBody,
}


def build_app(server: ServerContext) -> FastAPI:
    """The ASGI app of one server."""
    app = FastAPI(
        title="jserve",
        version=__version__,
        exception_handlers=dict.fromkeys(EXPECTED_ERRORS, handle_error),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    for method, path, handler in ROUTES:
        if path == PLAYGROUND and not server.settings.ui:
            continue
        app.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=None,
            operation_id=re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_"),
            openapi_extra=describe_route(method, path, BODIES),
        )
    _add_heads(app)
    app.state.server = server
    _add_layers(app, server)
    return app


def _add_heads(app: FastAPI) -> None:
    """Answer HEAD where GET is answered, as RFC 9110 (9.1) wants it; uvicorn leaves the body out."""
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    taken = {route.path for route in routes if "HEAD" in (route.methods or ())}
    for route in routes:
        if "GET" in (route.methods or ()) and route.path not in taken:
            app.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], response_model=None, include_in_schema=False
            )


def _add_layers(app: FastAPI, server: ServerContext) -> None:
    """From the inside to the outside. Preflights of browsers carry no key, so CORS stands before the guard."""
    settings = server.settings
    app.add_middleware(Dispatch, routes=app.routes)
    open_paths = OPEN_PATHS | {PLAYGROUND} | ({"/metrics"} if settings.metrics_without_key else set())
    hosts = HostNames(settings.allowed_hosts, needs_key=settings.needs_key)
    app.add_middleware(Guard, hosts=hosts, keys=server.keys, accounts=server.accounts, open_paths=open_paths)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=settings.allowed_methods,
            allow_headers=settings.allowed_headers,
            allow_credentials=settings.allow_credentials,
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(
        Edge,
        metrics=server.metrics.http,
        model_name=settings.model_names[0],
        routes=app.routes,
        tracer=server.tracer,
        audit=server.audit,
    )
