"""POST /api/generate: a prompt, put into the model's chat template or, with `raw`, taken as it is."""

import time
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import ServerContext, context_of
from jserve.api.generation.generation import Generation
from jserve.api.generation.request import PreparedPrompt
from jserve.api.http.answers import send_answer
from jserve.api.http.body import read_body
from jserve.api.model.lengths import check_prompt_length
from jserve.api.model.served_model import ServedModel
from jserve.api.ollama.answer import AnswerShape, OllamaAnswer, without_prompt
from jserve.api.ollama.bodies import GenerateBody
from jserve.api.ollama.fields import NAMES, generation_fields, is_unload, make_body, thinking_fields
from jserve.api.ollama.names import served_name
from jserve.api.openai import bodies
from jserve.api.openai.chat import prepare_chat
from jserve.api.openai.completions import start_completion
from jserve.api.openai.translation import fields_named
from jserve.errors import RequestError


async def generate(request: Request) -> Response:
    """Handle one request. `stream` defaults to true; without a prompt nothing is generated."""
    received = time.time()
    server = context_of(request)
    body = await read_body(request, GenerateBody, any_media_type=True)
    model = server.admit(served_name(server.settings, body.model_name))
    fields = generation_fields(body, model, server)
    _check_fields(body, model)
    shape = AnswerShape(
        body.model_name or model.name,
        is_chat=False,
        returns_context=not body.raw,
    )
    if not body.prompt:
        return Response(without_prompt(shape, unloads=is_unload(body)), media_type="application/json")
    start = _start_raw if body.raw else _start_in_template
    with fields_named(NAMES):
        generation = await start(server, body, model, fields)
    answer = OllamaAnswer(shape, model, generation, received)
    return await send_answer(request, server.generator, generation, answer, stream=body.is_streamed)


async def _start_raw(
    server: ServerContext, body: GenerateBody, model: ServedModel, fields: dict[str, Any]
) -> Generation:
    fields["prompt"] = body.prompt
    fields["max_tokens"] = fields["max_tokens"] or model.facts.max_model_len
    if body.logprobs or body.top_logprobs:
        _check_top_logprobs(body)
        fields["logprobs"] = body.top_logprobs or 0
    completion = make_body(bodies.CompletionBody, fields)
    return await start_completion(server, current_call(), completion, model, "ollama")


async def _start_in_template(
    server: ServerContext, body: GenerateBody, model: ServedModel, fields: dict[str, Any]
) -> Generation:
    """As a conversation of one message, after what `context` says, the tokens of an earlier answer."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    fields |= thinking_fields(body.think, model)
    fields |= {
        "messages": [*system, {"role": "user", "content": body.prompt}],
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
    }
    prepared = await prepare_chat(server, current_call(), make_body(bodies.ChatBody, fields), model, "ollama")
    if body.context:
        token_ids = [*body.context, *prepared.prompts[0].token_ids]
        check_prompt_length(len(token_ids), model.facts.max_model_len)
        prepared = replace(prepared, prompts=[PreparedPrompt(token_ids)])
    return server.generator.start(prepared, model, model.defaults.max_new_tokens)


def _check_fields(body: GenerateBody, model: ServedModel) -> None:
    """Raise RequestError for fields that the model or jserve cannot honour."""
    if body.raw and (body.system or body.template or body.context):
        raise RequestError("raw mode does not support template, system, or context", param="raw")
    if body.template:
        raise RequestError(
            "template: a request cannot bring a Go template; start the server with --chat-template FILE, "
            "or send the finished prompt with raw: true",
            param="template",
        )
    if body.suffix:
        message = "suffix: this model does not support insert; leave it out, or send a prompt for it with raw: true"
        raise RequestError(message, param="suffix")
    if body.images:
        raise RequestError("images: this model takes text only; leave them out", param="images")
    for token in (min(body.context), max(body.context)) if body.context else ():
        if not 0 <= token < model.facts.vocab_size:
            raise RequestError(f"context contains token id {token}, which is out of vocabulary", param="context")


def _check_top_logprobs(body: GenerateBody) -> None:
    if not body.logprobs:
        raise RequestError("when using top_logprobs, logprobs must be true", param="top_logprobs")
