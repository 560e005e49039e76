"""POST /v1/chat/completions: from messages to a prompt."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import Call, current_call
from jserve.api.context import ServerContext, context_of
from jserve.api.errors import invalid
from jserve.api.generation.generation import Generation
from jserve.api.generation.request import GenerationRequest, ParserUse, PreparedPrompt
from jserve.api.http.answers import send_answer
from jserve.api.http.body import check_cache_salt, public_id, read_body
from jserve.api.model.lengths import check_max_tokens, check_prompt_length, truncate_prompt
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.chat_answer import ChatAnswer
from jserve.api.openai.chat_output import ChatOutput
from jserve.api.openai.sampling import check_logprobs, sampling_params
from jserve.api.openai.streaming import add_usage_where_forced, check_stream_options, stream_interval
from jserve.api.openai.tool_use import ToolUse
from jserve.api.openai.unsupported import refuse_unsupported_chat_fields
from jserve.errors import RequestError
from jserve.protocol import SamplingParams

_REQUEST_TYPES = {"/v1/chat/completions": "chat_completions", "/v1/responses": "responses"}
"""What vLLM's metric calls the routes."""


async def chat_completions(request: Request) -> Response:
    """Handle one request."""
    server = context_of(request)
    body = await read_body(request, ChatBody)
    model = server.admit(body.model)
    add_usage_where_forced(body, server.settings)
    generation = await start_chat(server, current_call(), body, model)
    answer = ChatAnswer(body, model, generation, server.settings)
    return await send_answer(request, server.generator, generation, answer, stream=bool(body.stream))


async def start_chat(
    server: ServerContext, call: Call, body: ChatBody, model: ServedModel, id_prefix: str = "chatcmpl"
) -> Generation:
    """Check `body` and hand it to the engine. Every chat-like endpoint comes here, its own body made a ChatBody.

    The caller passes the generation to `send_answer`, which finishes it. Raises RequestError.
    """
    prepared = await prepare_chat(server, call, body, model, id_prefix)
    return server.generator.start(prepared, model, model.defaults.max_new_tokens)


async def prepare_chat(
    server: ServerContext, call: Call, body: ChatBody, model: ServedModel, id_prefix: str = "chatcmpl"
) -> GenerationRequest:
    """Check `body` and make its prompt, without asking the engine for anything. Raises RequestError."""
    model.check_generates()
    _check_fields(body)
    _check_template_fields(body, model, server)
    tool_use = ToolUse.of(body, shows_tools_for_none=not server.settings.exclude_tools_when_none)
    sampling = _sampling(body, model)
    text = await _render(body, model, tool_use)
    prompt = await _prepare_prompt(body, model, text)
    output = ChatOutput.after(text, body, model.speech(body.chat_template), tool_use)
    sampling = await output.constrain(server, body, sampling)
    sampling = msgspec.structs.replace(sampling, thinking_budget=output.thinking_budget(body.thinking_token_budget))
    return GenerationRequest(
        public_id=public_id(id_prefix, call, body.request_id),
        prompts=[prompt],
        sampling=sampling,
        priority=body.priority or 0,
        cache_salt=check_cache_salt(body.cache_salt),
        stream_interval=stream_interval(body, server.settings),
        new_parser=output.new_parser,
        counts_reasoning=output.speech.reasons,
        parser_use=_parser_use(call, body) if tool_use.tools else None,
    )


def _parser_use(call: Call, body: ChatBody) -> ParserUse:
    request_type = _REQUEST_TYPES.get(call.path, "other")
    return ParserUse("streaming" if body.stream else "non_streaming", request_type)


def _check_fields(body: ChatBody) -> None:
    check_stream_options(body)
    refuse_unsupported_chat_fields(body.model_extra or {})
    if not body.messages:
        raise RequestError("messages must not be empty", param="messages")
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    top = body.top_logprobs or 0
    if top < 0:
        raise invalid(f"`top_logprobs` must be a non-negative value, got {top}.", param="top_logprobs", value=top)
    if top and not body.logprobs:
        raise invalid("when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs", value=top)


def _check_template_fields(body: ChatBody, model: ServedModel, server: ServerContext) -> None:
    if body.chat_template is not None and not server.settings.trust_request_chat_template:
        raise RequestError(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template.",
            param="chat_template",
        )
    if body.documents and "documents" not in (body.chat_template or model.template.sources.get("default", "")):
        raise RequestError(
            "the chat template has no place for `documents`; leave them out and put their text into a message",
            param="documents",
        )


def _sampling(body: ChatBody, model: ServedModel) -> SamplingParams:
    check_max_tokens(body.max_tokens, param="max_tokens")
    check_max_tokens(body.max_completion_tokens, param="max_completion_tokens")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if logprobs is not None:
        check_logprobs(logprobs, param="top_logprobs")
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return sampling_params(
        body,
        model.defaults,
        vocab_size=model.facts.vocab_size,
        tokenizer=model.tokenizer,
        max_tokens=wanted,
        logprobs=logprobs,
    )


async def _render(body: ChatBody, model: ServedModel, tool_use: ToolUse) -> str:
    add_generation_prompt = body.add_generation_prompt
    if add_generation_prompt is None:
        add_generation_prompt = not body.continue_final_message
    return await model.render_chat(
        model.with_presets(body.messages),
        max_model_len=model.facts.max_model_len,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=_template_variables(body),
        tools=tool_use.descriptions,
        documents=body.documents,
        template=body.chat_template,
    )


async def _prepare_prompt(body: ChatBody, model: ServedModel, text: str) -> PreparedPrompt:
    max_model_len = model.facts.max_model_len
    token_ids = await model.encode(text, add_special_tokens=body.add_special_tokens, max_model_len=max_model_len)
    token_ids = truncate_prompt(token_ids, body.truncate_prompt_tokens, body.truncation_side, max_model_len)
    check_prompt_length(len(token_ids), max_model_len)
    if body.return_prompt_text and body.truncate_prompt_tokens is not None:
        text = model.tokenizer.decode(token_ids, skip_special_tokens=False)
    return PreparedPrompt(token_ids, text if body.return_prompt_text else "")


def _template_variables(body: ChatBody) -> dict[str, Any]:
    """Variables for the chat template. An effort asks for thinking, unless the request says otherwise."""
    variables: dict[str, Any] = {}
    if body.verbosity is not None:
        variables["verbosity"] = body.verbosity
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
        # Of Qwen and most others, and of DeepSeek and Granite.
        variables["enable_thinking"] = variables["thinking"] = body.reasoning_effort != "none"
    return variables | (body.chat_template_kwargs or {})
