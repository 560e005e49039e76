"""/v1/batches: made, seen, listed and cancelled by the key whose file it is."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import ServerContext, context_of
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.openai.batch.answering import URLS
from jserve.api.openai.files import files_of, listed, page_limit
from jserve.api.openai.responses_api.body import MetadataKey, MetadataValue
from jserve.api.store.batches import MAX_UNFINISHED, UNFINISHED, Batch, new_batch
from jserve.errors import RequestError

_WINDOW = re.compile(r"([1-9]\d{0,2})([hd])")
_MAX_PAGE, _DEFAULT_PAGE = 100, 20


class BatchBody(BaseModel):
    """POST /v1/batches."""

    model_config = ConfigDict(extra="allow")

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: dict[str, Any] | None = None


async def create_batch(request: Request) -> Response:
    """Make a batch of a file."""
    body = await read_body(request, BatchBody)
    server, owner = context_of(request), current_call().key.owner
    if body.endpoint not in URLS:
        message = f"endpoint is {body.endpoint!r:.80} but must be one of {', '.join(sorted(URLS))}"
        raise RequestError(message, param="endpoint")
    window = _WINDOW.fullmatch(body.completion_window)
    if window is None:
        message = f"completion_window is {body.completion_window!r:.40} but must be written like '24h' or '7d'"
        raise RequestError(message, param="completion_window")
    if body.output_expires_after is not None:
        message = "output_expires_after is not supported; files expire after --storage-retention-hours"
        raise RequestError(message, param="output_expires_after")
    file = await files_of(server).find(owner, body.input_file_id)
    if file is None or file.purpose != "batch":
        message = f"input_file_id {body.input_file_id!r:.80} is no file of yours with the purpose 'batch'"
        raise RequestError(message, param="input_file_id")
    window_s = int(window[1]) * (86_400 if window[2] == "d" else 3_600)
    batch = new_batch(body.endpoint, file.id, body.completion_window, window_s, body.metadata)
    if not await server.store.batches.add(owner, batch):
        raise RequestError(
            f"you have {MAX_UNFINISHED} batches that are not over, the most at once; wait, or cancel some"
        )
    server.store.batches.on_added()
    return JsonResponse(batch)


async def list_batches(request: Request) -> Response:
    """The caller's batches, the newest first."""
    server = context_of(request)
    files_of(server)
    limit = page_limit(request, _MAX_PAGE, _DEFAULT_PAGE)
    after = request.query_params.get("after")
    page = await server.store.batches.page(current_call().key.owner, after=after, limit=limit + 1)
    return JsonResponse(listed(page, limit))


async def show_batch(request: Request) -> Response:
    """One batch, with how far it is."""
    return JsonResponse(await _batch_of(request, context_of(request)))


async def cancel_batch(request: Request) -> Response:
    """End a batch. What has been answered is written into its files."""
    server = context_of(request)
    batch = await _batch_of(request, server)
    stopped = None
    if batch.status in UNFINISHED:
        unless = tuple({"cancelling", "finalizing", "completed", "failed", "expired", "cancelled"})
        stopped = await server.store.batches.move(batch.id, "cancelling", unless=unless)
    if stopped is None and batch.status != "cancelling":
        raise HTTPException(409, f"Cannot cancel a batch with status '{batch.status}'.")
    server.store.batches.on_cancelling(batch.id)
    return JsonResponse(stopped or batch)


async def _batch_of(request: Request, server: ServerContext) -> Batch:
    files_of(server)
    batch_id = request.path_params["batch_id"]
    batch = await server.store.batches.find(current_call().key.owner, batch_id)
    if batch is None:
        raise HTTPException(404, f"No batch found with id '{batch_id:.80}'.")
    return batch
