"""POST /v1/responses, and the routes of responses that are remembered."""

from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.http.answers import send_answer
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.openai.chat import prepare_chat, start_chat
from jserve.api.openai.files import listed, page_limit
from jserve.api.openai.responses_api.answer import ResponsesAnswer
from jserve.api.openai.responses_api.background import answer_behind, cancel
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.openai.responses_api.memory import earlier_items, remember, shown_items
from jserve.api.openai.responses_api.request import chat_of, names_of, with_items
from jserve.api.openai.responses_api.truncation import drop_oldest_turns
from jserve.api.openai.translation import fields_named
from jserve.api.store.responses import Turn
from jserve.errors import RequestError

_MAX_PAGE, _DEFAULT_PAGE = 100, 20


async def responses(request: Request) -> Response:
    """Handle one request."""
    server, call = context_of(request), current_call()
    body = await read_body(request, ResponsesBody)
    model = server.admit(body.model)
    owner = call.key.owner
    body = with_items(body, server.recent_items, owner.encode())
    chat = chat_of(body, await earlier_items(server, owner, body))
    with fields_named(names_of(body, chat)):
        if body.truncation == "auto":
            chat = await drop_oldest_turns(server, call, chat, model)
        generation = await start_chat(server, call, chat, model, "resp_")
    keep = None if body.store is False else partial(remember, server, owner, body)
    answer = ResponsesAnswer(body, model, generation, keep)
    if body.background:
        return JsonResponse(answer_behind(server, call, body, answer, generation))
    return await send_answer(request, server.generator, generation, answer, stream=bool(body.stream))


async def count_input_tokens(request: Request) -> Response:
    """Count the tokens of a response's input. The body is that of a response."""
    server, call = context_of(request), current_call()
    body = await read_body(request, ResponsesBody)
    model = server.admit(body.model)
    body = with_items(body, server.recent_items, call.key.owner.encode())
    chat = chat_of(body, await earlier_items(server, call.key.owner, body))
    with fields_named(names_of(body, chat)):
        prepared = await prepare_chat(server, call, chat, model)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": len(prepared.prompts[0].token_ids)})


async def show_response(request: Request) -> Response:
    """A response that is remembered."""
    turn = await _turn_of(request)
    if request.query_params.get("stream", "false").lower() == "true":
        raise RequestError("a response that is remembered is not streamed; leave `stream` out", param="stream")
    return Response(turn.body, media_type="application/json")


async def list_input_items(request: Request) -> Response:
    """The items that were sent with a response, the newest first."""
    turn = await _turn_of(request)
    limit = page_limit(request, _MAX_PAGE, _DEFAULT_PAGE)
    items = shown_items(turn)
    if request.query_params.get("order", "desc") != "asc":
        items.reverse()
    after = request.query_params.get("after")
    ids = [item["id"] for item in items]
    begin = ids.index(after) + 1 if after in ids else 0
    return JsonResponse(listed(items[begin : begin + limit + 1], limit))


async def delete_response(request: Request) -> Response:
    """Forget a response; one that is being answered ends."""
    server, turn = context_of(request), await _turn_of(request)
    owner = current_call().key.owner
    cancel(server, owner, turn)
    await server.store.responses.delete(owner, turn.id)
    return JsonResponse({"id": turn.id, "object": "response", "deleted": True})


async def cancel_response(request: Request) -> Response:
    """End a response in the background. One that has ended is given as it is."""
    turn = await _turn_of(request)
    if not turn.response()["background"]:
        raise RequestError("only a response in the background can be cancelled; close the connection of others")
    return Response(cancel(context_of(request), current_call().key.owner, turn), media_type="application/json")


async def _turn_of(request: Request) -> Turn:
    response_id = request.path_params["response_id"]
    turn = await context_of(request).store.responses.find(current_call().key.owner, response_id)
    if turn is None:
        raise HTTPException(
            404,
            f"Response with id '{response_id:.80}' not found: it was never stored (`store: false`), was deleted, or "
            "was forgotten for newer ones.",
        )
    return turn
