"""/v1/files: OpenAI's Files API, for batches. A file is seen by the key that sent it alone."""

import contextlib
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from jserve.api.call import current_call
from jserve.api.context import ServerContext, context_of
from jserve.api.http.receive import received_parts
from jserve.api.http.upload import Form, received_form
from jserve.api.json_writer import JsonResponse
from jserve.api.store.files import FileTable, StoredFile
from jserve.errors import RequestError

PURPOSES = ("batch", "user_data")
_SHORTEST_S, _LONGEST_S = 3600, 30 * 86_400
"""What `expires_after[seconds]` may be."""
_MAX_PAGE = 10_000
_FRAMING = 1 << 16
"""Bytes of a form around its file."""


async def upload_file(request: Request) -> Response:
    """Keep a file."""
    server = context_of(request)
    table, settings = files_of(server), server.settings
    owner, path = current_call().key.owner, table.new_path()
    try:
        parts = received_parts(
            request, settings.max_file_bytes + _FRAMING, settings.receive_timeout_s, "--max-file-bytes"
        )
        form = await received_form(parts, request.headers.get("content-type", ""), path)
        file = await _kept(table, form, owner, path, settings.storage_bytes_per_key)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return JsonResponse(file.described())


async def _kept(table: FileTable, form: Form, owner: str, path: Path, most_bytes: int) -> StoredFile:
    purpose = form.fields.get("purpose")
    if form.filename is None:
        raise RequestError("the form has no field `file`", param="file")
    if purpose not in PURPOSES:
        raise RequestError(f"purpose is {purpose!r} but must be one of {', '.join(PURPOSES)}", param="purpose")
    file = await table.add(
        path,
        owner=owner,
        filename=form.filename,
        purpose=purpose,
        lifetime_s=_lifetime(form.fields),
        most_bytes=most_bytes,
    )
    if file is None:
        raise RequestError(
            f"your files would take more than {most_bytes} bytes together (--storage-bytes-per-key); delete some",
            param="file",
        )
    return file


def _lifetime(fields: dict[str, str]) -> int | None:
    text = fields.get("expires_after[seconds]")
    if text is None:
        return None
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise RequestError("expires_after[anchor] must be 'created_at'", param="expires_after")
    if not text.isdecimal() or not _SHORTEST_S <= int(text[:12]) <= _LONGEST_S:
        raise RequestError(
            f"expires_after[seconds] is {text!r:.40} but must be from {_SHORTEST_S} to {_LONGEST_S}",
            param="expires_after",
        )
    return int(text)


async def list_files(request: Request) -> Response:
    """The caller's files, the newest first."""
    table = files_of(context_of(request))
    query = request.query_params
    limit = page_limit(request, _MAX_PAGE)
    page = await table.page(
        current_call().key.owner,
        purpose=query.get("purpose"),
        after=query.get("after"),
        limit=limit + 1,
        newest_first=query.get("order", "desc") != "asc",
    )
    return JsonResponse(listed([file.described() for file in page], limit))


async def show_file(request: Request) -> Response:
    """One file, without its bytes."""
    return JsonResponse((await _file_of(request)).described())


async def file_content(request: Request) -> Response:
    """The bytes of a file."""
    file = await _file_of(request)
    path = files_of(context_of(request)).path(file.id)
    return FileResponse(path, media_type="application/octet-stream", filename=file.filename)


async def delete_file(request: Request) -> Response:
    """Delete a file."""
    file = await _file_of(request)
    await files_of(context_of(request)).delete(file.owner, file.id)
    return JsonResponse({"id": file.id, "object": "file", "deleted": True})


async def _file_of(request: Request) -> StoredFile:
    file_id = request.path_params["file_id"]
    file = await files_of(context_of(request)).find(current_call().key.owner, file_id)
    if file is None:
        raise HTTPException(404, f"No such File object: {file_id:.80}")
    return file


def files_of(server: ServerContext) -> FileTable:
    """The server's files. Raises HTTPException (501) where it keeps none."""
    if server.store.files is None:
        raise HTTPException(501, "this server keeps no files; it would with --storage-dir")
    return server.store.files


def page_limit(request: Request, most: int, default: int | None = None) -> int:
    """How many objects the caller wants. Raises RequestError."""
    text = request.query_params.get("limit")
    if text is None:
        return default or most
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise RequestError(f"limit is {text!r:.40} but must be from 1 to {most}", param="limit")
    return int(text)


def listed(objects: list[Any], limit: int) -> dict[str, Any]:
    """OpenAI's page of objects, of which one more than `limit` shows that another page follows."""
    shown = objects[:limit]
    ids = [each["id"] if isinstance(each, dict) else each.id for each in shown]
    return {
        "object": "list",
        "data": shown,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": len(objects) > limit,
    }
