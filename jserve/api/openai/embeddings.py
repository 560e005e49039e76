"""POST /v1/embeddings: a vector of length 1 for each input.

It is the final hidden state of the input's last token, of its first, or the mean of all. A model for embeddings says
which of these it was trained for, and what text goes before an input.
"""

import asyncio
import base64
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.errors import invalid
from jserve.api.generation.generation import Generation
from jserve.api.generation.request import GenerationRequest, PreparedPrompt
from jserve.api.generation.usage import Usage
from jserve.api.http.answers import all_updates
from jserve.api.http.body import check_cache_salt, public_id, read_body
from jserve.api.http.pieces import BodyInPieces
from jserve.api.json_writer import HOLE, encode_around_holes, list_in_pieces
from jserve.api.model.lengths import check_prompt_length, truncate_prompt
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import EmbeddingBody, PooledBody
from jserve.api.openai.completions import check_vocabulary, split_prompts
from jserve.api.openai.shapes import Embedding, Embeddings
from jserve.errors import RequestError
from jserve.protocol import Pooling, SamplingParams

if TYPE_CHECKING:
    import numpy as np


async def embeddings(request: Request) -> Response:
    """Handle one request."""
    body = await read_body(request, EmbeddingBody)
    model = context_of(request).admit(body.model)
    prepared = await prepare_embeddings(request, body, model)
    vectors = await embed(request, prepared, model, body.dimensions)
    answer = Embeddings(
        id=prepared.public_id,
        created=int(time.time()),
        model=model.name,
        data=[HOLE],
        usage=prompt_usage(prepared.prompts),
    )
    return BodyInPieces(_in_pieces(answer, vectors, as_text=body.encoding_format == "base64"))


def _in_pieces(answer: Embeddings, vectors: "list[np.ndarray]", *, as_text: bool) -> Iterator[bytes]:
    before, after = encode_around_holes(answer)
    yield before
    shown = (base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist() for vector in vectors)
    yield from list_in_pieces([Embedding(index, vector)] for index, vector in enumerate(shown))
    yield after


async def prepare_embeddings(
    request: Request, body: EmbeddingBody, model: ServedModel, id_prefix: str = "embd"
) -> GenerationRequest:
    """Check `body` and make its prompts. Raises RequestError."""
    if model.classifier is not None:
        raise RequestError(
            f'the model "{model.name}" gives labels and makes no embeddings; send texts to /classify, or pairs of them '
            "to /score or /rerank where it has one label",
            param="model",
        )
    pooling = body.pooling or context_of(request).settings.pooling or _pooling_of(model)
    return await prepare_pooled(request, body, model, id_prefix, pooling, body.prompt_name)


async def prepare_pooled(
    request: Request,
    body: PooledBody,
    model: ServedModel,
    id_prefix: str,
    pooling: Pooling,
    prompt_name: str | None = None,
) -> GenerationRequest:
    """The prompts of `body`, each of which becomes one vector. Raises RequestError."""
    if (body.input is None) == (body.messages is None):
        raise RequestError("give either `input` or `messages`", param="input")
    prompts = await _prompts_of_messages(body, model) if body.input is None else []
    for text in _split_inputs(body.input) if body.input is not None else ():
        prompts.append(await _prompt_of_input(text, body, model, prompt_name))
        await asyncio.sleep(0)  # A thousand texts must not hold up everybody else's tokens.
    return GenerationRequest(
        public_id=public_id(id_prefix, current_call(), body.request_id),
        prompts=prompts,
        sampling=SamplingParams(max_tokens=0, temperature=0.0),
        priority=body.priority or 0,
        cache_salt=check_cache_salt(body.cache_salt),
        pooling=pooling,
    )


async def embed(
    request: Request, prepared: GenerationRequest, model: ServedModel, dimensions: int | None = None
) -> "list[np.ndarray]":
    """The embeddings of all prompts, f32[E] of length 1 each, in order.

    `dimensions` keeps the first numbers. Raises RequestError where a model that generates is asked for fewer than it
    has: none is trained so that the first numbers of its hidden state mean something alone.
    """
    generation = context_of(request).generator.start(prepared, model, None)
    vectors = await vectors_of(request, generation)
    size = len(vectors[0])
    if dimensions is None or dimensions == size:
        return vectors
    if model.embedder is None:
        raise invalid(
            f"this model's embeddings have {size} dimensions and cannot be shortened, since it was not trained for "
            "that (Matryoshka); leave `dimensions` out.",
            param="dimensions",
            value=dimensions,
        )
    if not 1 <= dimensions < size:
        message = f"this model's embeddings have {size} dimensions; ask for 1 to {size}."
        raise invalid(message, param="dimensions", value=dimensions)
    return [shortened(vector, dimensions) for vector in vectors]


async def vectors_of(request: Request, generation: Generation) -> "list[np.ndarray]":
    """The embeddings that a generation which has just started gives: f32[E] for each of its prompts, in order."""
    import numpy as np  # 0.15 s that a start is spared

    updates = await all_updates(request, context_of(request).generator, generation)
    vectors = {update.index: np.frombuffer(update.embedding, "<f4") for update in updates if update.embedding}
    return [vectors[index] for index in range(generation.num_choices)]


def shortened(vector: "np.ndarray", dimensions: int) -> "np.ndarray":
    """The first `dimensions` numbers of f32[E], brought to length 1 again."""
    import numpy as np

    kept = vector[:dimensions].astype("f8")
    return (kept / (np.linalg.norm(kept) or 1.0)).astype("<f4")


def prompt_usage(prompts: Sequence[PreparedPrompt]) -> Usage:
    """Token counts where nothing was generated."""
    count = sum(len(prompt.token_ids) for prompt in prompts)
    return Usage(count, count, 0)


def _split_inputs(value: str | list[int] | list[str] | list[list[int]]) -> list[str] | list[list[int]]:
    """One entry for each input. An empty text is one. Raises RequestError where there is none, or too many."""
    if isinstance(value, str):
        return [value]
    if not value or any(isinstance(entry, list) and not entry for entry in value):
        raise RequestError("`input` holds no text, or a list without token ids; give at least one", param="input")
    return split_prompts(value, param="input")


async def _prompt_of_input(
    text: str | list[int], body: PooledBody, model: ServedModel, prompt_name: str | None
) -> PreparedPrompt:
    if not isinstance(text, str):
        check_vocabulary(text, model.facts.vocab_size, param="input")
        return _fitted(text, body, model, model.facts.max_model_len)
    special = body.add_special_tokens is not False
    worded = _with_prompt(text, prompt_name, model)
    if body.truncate_prompt_tokens is not None and _side(body, model) == "right":
        worded = await model.beginning(worded, model.facts.max_model_len)
    token_ids = await model.encode(worded, add_special_tokens=special, max_model_len=model.facts.max_model_len)
    token_ids = token_ids or [model.blank_token]
    ends = model.tokenizer.special_ends if special else (0, 0)
    return _fitted(token_ids, body, model, model.facts.max_model_len, ends)


def _with_prompt(text: str, name: str | None, model: ServedModel) -> str:
    """A text after the prompt of this name, or else the model's default one, as the model wants it."""
    prompts = {} if model.embedder is None else model.embedder.prompts
    if name is not None and name not in prompts:
        listed = ", ".join(prompts) or "none"
        raise invalid(f"this model has no prompt of that name; it has: {listed}.", param="prompt_name", value=name)
    if model.embedder is None:
        return text
    text = (model.embedder.default_prompt if name is None else prompts[name]) + text
    return text.lower() if model.embedder.lowercases else text


def _side(body: PooledBody, model: ServedModel) -> str:
    """Which end of a text is cut. A model that does not generate was trained on beginnings."""
    return body.truncation_side or ("left" if model.generates else "right")


def _pooling_of(model: ServedModel) -> Pooling:
    return "last" if model.embedder is None else model.embedder.pooling


async def _prompts_of_messages(body: PooledBody, model: ServedModel) -> list[PreparedPrompt]:
    limit = model.facts.max_model_len
    text = await model.render_chat(
        body.messages or [],
        max_model_len=limit,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=False,
        variables=body.chat_template_kwargs or {},
    )
    token_ids = await model.encode(text, add_special_tokens=bool(body.add_special_tokens), max_model_len=limit)
    return [_fitted(token_ids, body, model, limit)]


def _fitted(
    token_ids: list[int], body: PooledBody, model: ServedModel, max_model_len: int, ends: tuple[int, int] = (0, 0)
) -> PreparedPrompt:
    limit, side = body.truncate_prompt_tokens, _side(body, model)
    token_ids = truncate_prompt(token_ids, limit, side, max_model_len, generates=False, special_ends=ends)
    check_prompt_length(len(token_ids), max_model_len, generates=False)
    return PreparedPrompt(token_ids)
