"""Requests that would change a store of models. jserve has none: it serves what it was started with."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_SERVES = "jserve serves the one model that it was started with"


async def pull(request: Request) -> Response:
    """Answer 501: models are not pulled."""
    raise HTTPException(501, f"{_SERVES} and pulls none; download the model and start `jserve --model PATH`")


async def push(request: Request) -> Response:
    """Answer 501: models are not pushed."""
    raise HTTPException(501, f"{_SERVES} and pushes none; upload its files with the tool of the place they go to")


async def create(request: Request) -> Response:
    """Answer 501: models are not created."""
    raise HTTPException(
        501,
        f"{_SERVES} and creates none; give a system message and options with each request, a template with "
        "`--chat-template FILE`, and another model with `--model PATH`",
    )


async def copy(request: Request) -> Response:
    """Answer 501: models are not copied."""
    raise HTTPException(501, f"{_SERVES} and copies none; give it several names with `--served-model-name A B`")


async def delete(request: Request) -> Response:
    """Answer 501: models are not deleted."""
    raise HTTPException(501, f"{_SERVES} and deletes none; stop the server and remove the model's files")


async def blob(request: Request) -> Response:
    """Answer 501: blobs are not kept."""
    raise HTTPException(501, f"{_SERVES} and keeps no blobs; put the file where the server runs, for `--model PATH`")
