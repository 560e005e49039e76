"""What the server remembers of responses: for `previous_response_id`, for GET, and for references to single items."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from jserve.api.context import ServerContext
from jserve.api.json_writer import encode
from jserve.api.openai.responses_api import shapes
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.store.responses import Turn
from jserve.errors import RequestError


async def earlier_items(server: ServerContext, owner: str, body: ResponsesBody) -> list[dict[str, Any]]:
    """The conversation that `body` continues, without instructions. Raises RequestError where it is not known."""
    if body.previous_response_id is None:
        return []
    chain = await server.store.responses.chain(owner, body.previous_response_id)
    if chain is None:
        raise RequestError(
            f"Previous response with id '{body.previous_response_id:.80}' not found, or one that it continues: it was "
            "deleted, or forgotten for newer ones. Send the whole conversation as `input` instead",
            param="previous_response_id",
        )
    if chain[-1].is_open:
        message = f"the previous response '{body.previous_response_id:.80}' is not complete yet"
        raise RequestError(message, param="previous_response_id")
    return [item for turn in chain for item in (*turn.input_items(), *turn.response()["output"])]


def remember(
    server: ServerContext, owner: str, body: ResponsesBody, response: shapes.ResponseObject, *, is_open: bool = False
) -> None:
    """Keep a response with its input, and its items for those who refer to them."""
    caller = owner.encode()
    for item in response.output:
        server.recent_items.add(caller, item.id, item)
    server.store.responses.put(
        owner,
        Turn(
            id=response.id,
            previous_id=body.previous_response_id,
            input=to_json(own_items(body.input)),
            body=encode(response),
            is_open=is_open,
        ),
        only_if_open=bool(body.background) and not is_open,
    )


def own_items(items: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input as a list of items."""
    return [{"type": "message", "role": "user", "content": items}] if isinstance(items, str) else list(items)


def shown_items(turn: Turn) -> list[dict[str, Any]]:
    """The input of a response as OpenAI lists it: each item with an id, texts of messages as parts."""
    shown = []
    for number, item in enumerate(turn.input_items()):
        kind = item.get("type", "message")
        item = {"id": f"item_{turn.id.removeprefix('resp_')}_{number}", **item, "type": kind}
        if kind == "message" and isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            extra: dict[str, list[Any]] = {"annotations": []} if part == "output_text" else {}
            item["content"] = [{"type": part, "text": item["content"], **extra}]
        shown.append(item)
    return shown
