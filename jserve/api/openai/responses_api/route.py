"""POST /v1/responses, and what of that API needs a store, which this server does not have."""

from functools import partial
from typing import NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.http.answers import send_answer
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.openai.chat import prepare_chat, start_chat
from jserve.api.openai.responses_api.answer import ResponsesAnswer
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.openai.responses_api.request import chat_of, names_of, with_items
from jserve.api.openai.responses_api.truncation import drop_oldest_turns
from jserve.api.openai.translation import fields_named


async def responses(request: Request) -> Response:
    """Handle one request."""
    server = context_of(request)
    body = await read_body(request, ResponsesBody)
    model = server.admit(body.model)
    caller = current_call().key.digest
    body = with_items(body, server.recent_items, caller)
    chat = chat_of(body)
    with fields_named(names_of(body, chat)):
        if body.truncation == "auto":
            chat = await drop_oldest_turns(server, current_call(), chat, model)
        generation = await start_chat(server, current_call(), chat, model, "resp_")
    keep = None if body.store is False else partial(server.recent_items.add, caller)
    answer = ResponsesAnswer(body, model, generation, keep)
    return await send_answer(request, server.generator, generation, answer, stream=bool(body.stream))


async def count_input_tokens(request: Request) -> Response:
    """Count the tokens of a response's input. The body is that of a response."""
    server = context_of(request)
    body = await read_body(request, ResponsesBody)
    model = server.admit(body.model)
    body = with_items(body, server.recent_items, current_call().key.digest)
    chat = chat_of(body)
    with fields_named(names_of(body, chat)):
        prepared = await prepare_chat(server, current_call(), chat, model)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": len(prepared.prompts[0].token_ids)})


async def stored_response(request: Request) -> NoReturn:
    """Answer 404: nothing is stored."""
    response_id = request.path_params["response_id"].partition("/")[0]
    raise HTTPException(
        404,
        f"Response '{response_id}' not found: this server keeps no responses. "
        "Send the whole conversation as `input`, and close the connection to cancel.",
    )
