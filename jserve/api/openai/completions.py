"""POST /v1/completions: from prompts, as text or token ids, to engine requests."""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import Call, current_call
from jserve.api.context import ServerContext, context_of
from jserve.api.generation.generation import Generation
from jserve.api.generation.request import GenerationRequest, PreparedPrompt
from jserve.api.http.answers import send_answer
from jserve.api.http.body import check_cache_salt, public_id, read_body
from jserve.api.model.lengths import check_max_tokens, check_prompt_length, truncate_prompt
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import MAX_PROMPTS, CompletionBody
from jserve.api.openai.completion_answer import CompletionAnswer
from jserve.api.openai.sampling import MAX_CHOICES, check_logprobs, sampling_params
from jserve.api.openai.streaming import add_usage_where_forced, check_stream_options, stream_interval
from jserve.api.openai.structured import constrain
from jserve.api.openai.unsupported import refuse_unsupported_completion_fields
from jserve.errors import RequestError
from jserve.protocol import SamplingParams
from jserve.text.tokenizers.detokenizer import IncrementalDetokenizer

_DEFAULT_MAX_TOKENS = 16


async def completions(request: Request) -> Response:
    """Handle one request."""
    server = context_of(request)
    body = await read_body(request, CompletionBody)
    model = server.admit(body.model)
    add_usage_where_forced(body, server.settings)
    generation = await start_completion(server, current_call(), body, model)
    answer = CompletionAnswer(body, model, generation, server.settings)
    return await send_answer(request, server.generator, generation, answer, stream=bool(body.stream))


async def start_completion(
    server: ServerContext, call: Call, body: CompletionBody, model: ServedModel, id_prefix: str = "cmpl"
) -> Generation:
    """Check `body` and hand it to the engine: `start_chat` for prompts that need no template.

    The caller passes the generation to `send_answer`, which finishes it. Raises RequestError.
    """
    model.check_generates()
    _check_fields(body)
    sampling = _sampling(body, model)
    raw_prompts = split_prompts(body.prompt)
    if len(raw_prompts) * sampling.n > MAX_CHOICES:
        message = f"{len(raw_prompts)} prompts times n={sampling.n} is more than {MAX_CHOICES} choices"
        raise RequestError(message, param="n")
    prompts = []
    for raw_prompt in raw_prompts:
        prompts.append(await _prepare_prompt(raw_prompt, body, model))
        await asyncio.sleep(0)  # A thousand prompts must not hold up everybody else's tokens.
    sampling = await constrain(server, body, sampling)
    return server.generator.start(
        GenerationRequest(
            public_id=public_id(id_prefix, call, body.request_id),
            prompts=prompts,
            sampling=sampling,
            priority=body.priority or 0,
            cache_salt=check_cache_salt(body.cache_salt),
            stream_interval=stream_interval(body, server.settings),
        ),
        model,
        model.defaults.max_new_tokens,
    )


def _check_fields(body: CompletionBody) -> None:
    check_stream_options(body)
    refuse_unsupported_completion_fields(body.model_extra or {}, body.n or 1)
    if body.echo and body.logprob_token_ids:
        message = "`logprob_token_ids` are not reported for an echoed prompt; leave out `echo`"
        raise RequestError(message, param="logprob_token_ids")


def _sampling(body: CompletionBody, model: ServedModel) -> SamplingParams:
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    least = 0 if body.echo else 1  # An echo without an answer: the prompt is scored.
    check_max_tokens(body.max_tokens, param="max_tokens", least=least)
    if body.logprobs is not None:
        check_logprobs(body.logprobs, param="logprobs")
    params = sampling_params(
        body,
        model.defaults,
        vocab_size=model.facts.vocab_size,
        tokenizer=model.tokenizer,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
    )
    if not body.echo or body.logprobs is None:
        return params
    return msgspec.structs.replace(params, prompt_logprobs=max(body.logprobs, body.prompt_logprobs or 0))


def split_prompts(
    prompt: str | list[int] | list[str] | list[list[int]] | None, *, param: str = "prompt"
) -> list[str] | list[list[int]]:
    """One entry per prompt. Raises RequestError where there is none, or too many."""
    if not prompt:
        raise RequestError("Either prompt or prompt_embeds must be provided and non-empty.", param=param)
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        message = f"{param} holds {len(prompt)} prompts but at most {MAX_PROMPTS} are allowed in one request"
        raise RequestError(message, param=param)
    return prompt


async def _prepare_prompt(prompt: str | list[int], body: CompletionBody, model: ServedModel) -> PreparedPrompt:
    max_model_len = model.facts.max_model_len
    if isinstance(prompt, str):
        token_ids = await model.encode(prompt, add_special_tokens=body.add_special_tokens, max_model_len=max_model_len)
    else:
        token_ids = prompt
        check_vocabulary(token_ids, model.facts.vocab_size)
    generates = body.max_tokens != 0
    token_ids = truncate_prompt(
        token_ids, body.truncate_prompt_tokens, body.truncation_side, max_model_len, generates=generates
    )
    check_prompt_length(len(token_ids), max_model_len, generates=generates)
    text = prompt if isinstance(prompt, str) else ""
    if body.echo and (not text or body.truncate_prompt_tokens is not None):
        detokenizer = IncrementalDetokenizer(model.tokenizer, body.skip_special_tokens)
        text = detokenizer.push(token_ids) + detokenizer.finish()
    return PreparedPrompt(token_ids, text)


def check_vocabulary(token_ids: list[int], vocab_size: int, *, param: str = "prompt") -> None:
    """Raise RequestError for an id that the model does not have."""
    if not token_ids:
        return
    for token in (min(token_ids), max(token_ids)):
        if not 0 <= token < vocab_size:
            raise RequestError(f"Token id {token} is out of vocabulary", param=param)
