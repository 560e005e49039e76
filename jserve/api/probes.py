"""Probes and information: /health, /ready, /ping, /version, /load, /v1/models, /metrics."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.context import ServerContext, context_of
from jserve.api.errors import answer_for
from jserve.api.json_writer import JsonResponse
from jserve.api.supervisor.client import EngineStatus
from jserve.api.telemetry.metrics import CONTENT_TYPE
from jserve.errors import EngineUnavailableError
from jserve.version import __version__


async def health(request: Request) -> Response:
    """200 while an engine process is alive, also while it loads; 503 between a death and the next start.

    With `--health-when ready` it is 200 only while requests are taken.
    """
    server = context_of(request)
    if server.settings.health_when == "ready":
        return await ready(request)
    is_alive = server.client.state is not EngineStatus.DOWN
    return Response(status_code=200 if is_alive else 503)


async def health_decode(request: Request) -> Response:
    """503 where the engine has work and has sent nothing for `--stall-timeout` seconds."""
    client = context_of(request).client
    is_well = client.state is not EngineStatus.DOWN and not client.is_stalled
    return Response(status_code=200 if is_well else 503)


async def ready(request: Request) -> Response:
    """200 while requests are taken, with how many programs are still compiled behind; otherwise 503 with the reason."""
    server = context_of(request)
    try:
        server.model_when_ready()
    except EngineUnavailableError as error:
        return answer_for(error).response()
    answer: dict[str, Any] = {"status": "ready"}
    if (counts := server.client.programs) is not None:
        answer["programs"] = {
            "ready": counts.ready,
            "pending": counts.pending,
            "failed": counts.failed,
            "total": counts.total,
            "untuned": counts.untuned,
        }
        answer["detail"] = f"compiled {counts.ready} of {counts.total} programs"
    return JsonResponse(answer)


async def ping(request: Request) -> Response:
    """The same as /health, under SageMaker's name."""
    return await health(request)


async def version(request: Request) -> Response:
    """The version of jserve."""
    return JsonResponse({"version": __version__})


async def load(request: Request) -> Response:
    """How many requests are being answered."""
    return JsonResponse({"server_load": context_of(request).generator.num_open})


async def metrics(request: Request) -> Response:
    """Prometheus metrics as text."""
    return Response(context_of(request).metrics.render(), media_type=CONTENT_TYPE)


async def list_models(request: Request) -> Response:
    """The names that requests may use, in a shape that clients of OpenAI and of Anthropic both read."""
    server = context_of(request)
    names = server.listed_names
    page = {"has_more": False, "first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return JsonResponse({"object": "list", "data": [_model_card(server, name) for name in names], **page})


async def show_model(request: Request) -> Response:
    """One model by name; names may hold slashes."""
    server = context_of(request)
    name = request.path_params["name"]
    server.check_name(name)
    return JsonResponse(_model_card(server, name))


def _model_card(server: ServerContext, name: str) -> dict[str, Any]:
    ready = server.client.ready
    max_model_len = ready.model.max_model_len if ready else None
    permission = {
        "id": "modelperm-jserve",
        "object": "model_permission",
        "created": server.started,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "jserve",
        "root": server.settings.model,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(server.started, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": max_model_len,
    }
