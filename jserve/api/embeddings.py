"""POST /v1/embeddings: a decoder's final hidden state of a text's last token, or the mean of all, of unit length."""

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.answers import all_updates
from jserve.api.body import check_cache_salt, public_id, read_body
from jserve.api.completions import check_vocabulary, split_prompts
from jserve.api.context import context_of
from jserve.api.errors import invalid
from jserve.api.generation import GenerationRequest, PreparedPrompt
from jserve.api.lengths import check_prompt_length, truncate_prompt
from jserve.api.responses import Embedding, Embeddings, Usage, encode
from jserve.api.schemas import EmbeddingBody
from jserve.api.served_model import ServedModel
from jserve.errors import RequestError
from jserve.protocol import SamplingParams

if TYPE_CHECKING:
    import numpy as np


async def embeddings(request: Request) -> Response:
    """Handle one request."""
    body = await read_body(request, EmbeddingBody)
    model = context_of(request).admit()
    prepared = await prepare_embeddings(request, body, model)
    vectors = await embed(request, prepared, model, body.dimensions)
    as_text = body.encoding_format == "base64"
    answer = Embeddings(
        id=prepared.public_id,
        created=int(time.time()),
        model=model.name,
        data=[
            Embedding(index, base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist())
            for index, vector in enumerate(vectors)
        ],
        usage=prompt_usage(prepared.prompts),
    )
    return Response(encode(answer), media_type="application/json")


async def prepare_embeddings(
    request: Request, body: EmbeddingBody, model: ServedModel, id_prefix: str = "embd"
) -> GenerationRequest:
    """Check `body` and make its prompts. Raises RequestError."""
    model.check_name(body.model)
    if (body.input is None) == (body.messages is None):
        raise RequestError("give either `input` or `messages`", param="input")
    prompts = await _prompts_of_messages(request, body, model) if body.input is None else []
    for text in split_prompts(body.input) if body.input is not None else ():
        prompts.append(await _prompt_of_input(request, text, body, model))
        await asyncio.sleep(0)  # A thousand texts must not hold up everybody else's tokens.
    return GenerationRequest(
        public_id=public_id(id_prefix, request.headers, body.request_id),
        prompts=prompts,
        sampling=SamplingParams(max_tokens=0, temperature=0.0),
        priority=body.priority or 0,
        cache_salt=check_cache_salt(body.cache_salt),
        pooling=body.pooling or context_of(request).settings.pooling,
    )


async def embed(
    request: Request, prepared: GenerationRequest, model: ServedModel, dimensions: int | None = None
) -> "list[np.ndarray]":
    """The embeddings of all prompts, f32[E] of length 1 each, in order.

    Raises RequestError where other `dimensions` are asked for: no decoder is trained so that the first numbers
    of its hidden state mean something alone.
    """
    import numpy as np  # 0.15 s that a start is spared

    generator = context_of(request).generator
    generation = generator.start(prepared, model.tokenizer, None)
    found = [np.zeros(0, "<f4")] * generation.num_choices
    for update in await all_updates(request, generator, generation):
        found[update.index] = np.frombuffer(update.embedding, "<f4")
    size = len(found[0])
    if dimensions is not None and dimensions != size:
        raise invalid(
            f"this model's embeddings have {size} dimensions and cannot be shortened, since it was not trained for "
            "that (Matryoshka); leave `dimensions` out.",
            "dimensions",
            dimensions,
        )
    return found


def prompt_usage(prompts: Sequence[PreparedPrompt]) -> Usage:
    """Token counts where nothing was generated."""
    count = sum(len(prompt.token_ids) for prompt in prompts)
    return Usage(count, count, 0)


async def _prompt_of_input(
    request: Request, text: str | list[int], body: EmbeddingBody, model: ServedModel
) -> PreparedPrompt:
    client = context_of(request).client
    if isinstance(text, str):
        special = body.add_special_tokens is not False
        token_ids = await model.encode(text, add_special_tokens=special, max_model_len=client.max_model_len)
    else:
        token_ids = text
        check_vocabulary(token_ids, client.vocab_size, param="input")
    return _fitted(token_ids, body, client.max_model_len)


async def _prompts_of_messages(request: Request, body: EmbeddingBody, model: ServedModel) -> list[PreparedPrompt]:
    limit = context_of(request).client.max_model_len
    text = await model.render_chat(
        body.messages or [],
        max_model_len=limit,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=False,
        variables=body.chat_template_kwargs or {},
    )
    token_ids = await model.encode(text, add_special_tokens=bool(body.add_special_tokens), max_model_len=limit)
    return [_fitted(token_ids, body, limit)]


def _fitted(token_ids: list[int], body: EmbeddingBody, max_model_len: int) -> PreparedPrompt:
    side: Literal["left", "right"] | None = body.truncation_side
    token_ids = truncate_prompt(token_ids, body.truncate_prompt_tokens, side, max_model_len, generates=False)
    check_prompt_length(len(token_ids), max_model_len, generates=False)
    return PreparedPrompt(token_ids)
