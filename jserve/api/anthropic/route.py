"""POST /v1/messages and /v1/messages/count_tokens."""

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.anthropic.answer import MessageAnswer
from jserve.api.anthropic.body import CountTokensBody, MessagesBody
from jserve.api.anthropic.request import NAMES, chat_of, chat_to_count
from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.http.answers import send_answer
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.openai.chat import prepare_chat, start_chat
from jserve.api.openai.translation import fields_named


async def messages(request: Request) -> Response:
    """Handle one request."""
    server = context_of(request)
    body = await read_body(request, MessagesBody)
    model = server.admit(body.model)
    with fields_named(NAMES):
        chat = chat_of(body, reasons=model.speech().reasons)
        generation = await start_chat(server, current_call(), chat, model, "msg_")
    with_thinking = body.thinking is None or body.thinking.display != "omitted"
    answer = MessageAnswer(model, generation, with_thinking=with_thinking)
    return await send_answer(request, server.generator, generation, answer, stream=bool(body.stream))


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a message's prompt. The body is that of a message, less what comes after the prompt."""
    server = context_of(request)
    body = await read_body(request, CountTokensBody)
    model = server.admit(body.model)
    with fields_named(NAMES):
        prepared = await prepare_chat(server, current_call(), chat_to_count(body), model)
    return JsonResponse({"input_tokens": len(prepared.prompts[0].token_ids)})
