"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's tokenizer, for texts and conversations."""

import asyncio
import functools

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.context import ServerContext, context_of
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import DetokenizeBody, TokenizeBody
from jserve.api.openai.completions import check_vocabulary
from jserve.errors import RequestError


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of a conversation as chat completions would send it to the model."""
    server = context_of(request)
    body = await read_body(request, TokenizeBody)
    model = server.admit(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either `prompt` or `messages`", param="prompt")
    limit = model.facts.max_model_len
    text, special = body.prompt, body.add_special_tokens is not False
    if text is None:
        text, special = await _render(body, model, server), bool(body.add_special_tokens)
    tokens = await model.encode(text, add_special_tokens=special, max_model_len=limit)
    strings = await asyncio.to_thread(_strings, model, tokens) if body.return_token_strs else None
    return JsonResponse({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": strings})


async def detokenize(request: Request) -> Response:
    """The text of some token ids, special tokens included."""
    server = context_of(request)
    body = await read_body(request, DetokenizeBody)
    model = server.admit(body.model)
    vocab_size = max(model.facts.vocab_size, model.tokenizer.num_ids)
    check_vocabulary(body.tokens, vocab_size, param="tokens")
    decode = functools.partial(model.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return JsonResponse({"prompt": await asyncio.to_thread(decode)})


async def tokenizer_info(request: Request) -> Response:
    """What clients need that render and tokenize for themselves: lm-eval takes its tokenizer from here."""
    model = context_of(request).admit(None)
    info = {**model.tokenizer.special_tokens, "chat_template": model.template.sources.get("default")}
    return JsonResponse({"eos_token": None, "bos_token": None, "pad_token": None, **info})


def _strings(model: ServedModel, tokens: list[int]) -> list[str | None]:
    return [model.tokenizer.token_string(token) for token in tokens]


async def _render(body: TokenizeBody, model: ServedModel, server: ServerContext) -> str:
    if not body.messages:
        raise RequestError("messages must not be empty", param="messages")
    if body.chat_template is not None and not server.settings.trust_request_chat_template:
        raise RequestError(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template.",
            param="chat_template",
        )
    generates = body.add_generation_prompt
    if generates and body.continue_final_message:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    return await model.render_chat(
        model.with_presets(body.messages),
        max_model_len=model.facts.max_model_len,
        add_generation_prompt=not body.continue_final_message if generates is None else generates,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs or {},
        tools=[tool for tool in body.tools or () if tool.get("type", "function") == "function"] or None,
        template=body.chat_template,
    )
