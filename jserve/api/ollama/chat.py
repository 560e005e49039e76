"""POST /api/chat: Ollama's messages and options, answered by the same code as OpenAI's chat."""

import time

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.http.answers import send_answer
from jserve.api.http.body import read_body
from jserve.api.ollama.answer import AnswerShape, OllamaAnswer, without_prompt
from jserve.api.ollama.bodies import OllamaChatBody
from jserve.api.ollama.fields import NAMES, generation_fields, is_unload, make_body, thinking_fields
from jserve.api.ollama.messages import to_openai
from jserve.api.ollama.names import served_name
from jserve.api.openai import bodies
from jserve.api.openai.chat import start_chat
from jserve.api.openai.translation import fields_named


async def chat(request: Request) -> Response:
    """Handle one request. `stream` defaults to true; without messages nothing is generated."""
    received = time.time()
    server = context_of(request)
    body = await read_body(request, OllamaChatBody, any_media_type=True)
    model = server.admit(served_name(server.settings, body.model_name))
    fields = generation_fields(body, model, server) | thinking_fields(body.think, model)
    shape = AnswerShape(body.model_name or model.name, is_chat=True)
    if not body.messages:
        return Response(without_prompt(shape, unloads=is_unload(body)), media_type="application/json")
    if body.tools:
        fields["tools"] = body.tools
    fields |= {"messages": to_openai(body.messages), "logprobs": body.logprobs, "top_logprobs": body.top_logprobs}
    with fields_named(NAMES):
        generation = await start_chat(server, current_call(), make_body(bodies.ChatBody, fields), model, "ollama")
    answer = OllamaAnswer(shape, model, generation, received)
    return await send_answer(request, server.generator, generation, answer, stream=body.is_streamed)
