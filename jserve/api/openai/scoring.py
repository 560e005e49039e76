"""POST /v1/score and /v1/rerank for causal models, which have no head that gives a score.

`--score-method generative`, the default, asks the model whether a document meets a query, in the words that
Qwen3-Reranker was trained on (its model card), through the chat template: the score is the probability of "yes"
against that of "no" as the next token, between 0 and 1. An instruct model that was never trained for it orders
documents too, if less well. `cosine` is the cosine of two embeddings, made as /v1/embeddings makes them: between
-1 and 1, and only as good as the model's embeddings are. A model for embeddings knows no other way.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.generation.request import GenerationRequest, PreparedPrompt
from jserve.api.generation.usage import Usage
from jserve.api.http.answers import all_updates
from jserve.api.http.body import check_cache_salt, public_id, read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.model.lengths import check_prompt_length
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import MAX_PROMPTS, EmbeddingBody, Int64, TokenIds
from jserve.api.openai.completions import check_vocabulary, split_prompts
from jserve.api.openai.embeddings import embed, prepare_embeddings, prompt_usage
from jserve.api.openai.shapes import LabelScores, RankedDocument, Ranking, Score, Scores
from jserve.errors import RequestError
from jserve.protocol import MAX_CHOSEN, SamplingParams

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
ANSWERS = ("yes", "no")
_FLOOR = -600.0
"""In place of the logprob of a token that is impossible, so that a difference stays a number."""

Texts = str | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]


class Document(BaseModel):
    """A document as Jina's clients send it."""

    model_config = ConfigDict(extra="allow")

    text: str


class ScoringBody(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    instruction: str | None = None
    """What the query asks for, in place of web search. jserve's own, of the generative method only."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    priority: Int64 | None = 0
    request_id: str | None = None
    cache_salt: str | None = None
    user: str | None = None


class ScoreBody(ScoringBody):
    """POST /v1/score: 1:1, 1:N or N:N texts; or SGLang's `query`, `items` and `label_token_ids`."""

    queries: Texts | None = Field(None, validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: Texts | None = Field(None, validation_alias=AliasChoices("documents", "text_2", "data_2"))
    query: str | TokenIds | None = None
    items: str | TokenIds | list[str] | list[TokenIds] | None = None
    label_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=MAX_CHOSEN)] | None = None
    apply_softmax: bool = False
    item_first: bool = False


class RerankBody(ScoringBody):
    """POST /v1/rerank."""

    query: str
    documents: Annotated[list[str | Document], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    top_n: Int64 | None = None
    """0 or less: all."""
    return_documents: bool | None = True


async def score(request: Request) -> Response:
    """Handle one request for scores."""
    body = await read_body(request, ScoreBody)
    model = context_of(request).admit(body.model)
    if body.label_token_ids is not None:
        return JsonResponse(await _label_scores(request, body, model))
    documents = body.documents if body.documents is not None else body.items
    queries = body.queries if body.queries is not None else body.query
    for name, texts in (("queries", queries), ("documents", documents)):
        if not texts or (not isinstance(texts, str) and not isinstance(texts[0], str)):
            message = f"`{name}` is missing; give a text or a list of texts"
            raise RequestError(message, param=name)
    pairs = _pairs(_listed(queries), _listed(documents))
    values, usage = await judge(request, body, pairs, model)
    answer = Scores(
        id=public_id("score", current_call(), body.request_id),
        created=int(time.time()),
        model=model.name,
        data=[Score(index, value) for index, value in enumerate(values)],
        usage=usage,
    )
    return JsonResponse(answer)


async def rerank(request: Request) -> Response:
    """Handle one request for a ranking."""
    body = await read_body(request, RerankBody)
    model = context_of(request).admit(body.model)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    values, usage = await judge(request, body, [(body.query, text) for text in texts], model)
    order = sorted(range(len(texts)), key=lambda index: -values[index])
    if body.top_n is not None and body.top_n > 0:
        order = order[: body.top_n]
    shown = body.return_documents is not False
    results = [RankedDocument(i, values[i], {"text": texts[i]} if shown else None) for i in order]
    answer = Ranking(public_id("rerank", current_call(), body.request_id), model.name, usage, results)
    return JsonResponse(answer)


async def judge(
    request: Request, body: ScoringBody, pairs: Sequence[tuple[str, str]], model: ServedModel
) -> tuple[list[float], Usage]:
    """The score of every (query, document), by the server's method. Raises RequestError."""
    if body.truncate_prompt_tokens is not None:
        raise RequestError(
            "`truncate_prompt_tokens` is not supported here: it would cut the question off; shorten the document",
            param="truncate_prompt_tokens",
        )
    if context_of(request).settings.score_method == "cosine" or model.embedder is not None:
        return await _cosines(request, body, pairs, model)
    answers = [model.tokenizer.encode(answer, add_special_tokens=False) for answer in ANSWERS]
    labels = [tokens[0] for tokens in answers if tokens]
    if len(set(labels)) != len(ANSWERS):
        raise RequestError(
            "this model's tokenizer has no token for yes or for no, so it cannot be asked; start the server with "
            "--score-method cosine"
        )
    limit = model.facts.max_model_len
    prompts = []
    for query, document in pairs:
        text = await _question(query, document, body.instruction or INSTRUCTION, model, limit)
        token_ids = await model.encode(text, add_special_tokens=False, max_model_len=limit)
        check_prompt_length(len(token_ids), limit)
        prompts.append(PreparedPrompt(token_ids))
    logprobs = await _next_token_logprobs(request, body, prompts, labels, model)
    return [1.0 / (1.0 + math.exp(no - yes)) for yes, no in logprobs], prompt_usage(prompts)


async def _question(query: str, document: str, instruction: str, model: ServedModel, limit: int) -> str:
    """The prompt after which the model says yes or no. A template that refuses a system message has it before the
    user's.
    """
    content = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    user = {"role": "user", "content": content}
    attempts: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": JUDGE}, user],
        [{"role": "user", "content": f"{JUDGE}\n\n{content}"}],
    ]
    for messages in attempts:
        try:
            return await model.render_chat(
                messages,
                max_model_len=limit,
                add_generation_prompt=True,
                continue_final_message=False,
                variables={"enable_thinking": False},
            )
        except RequestError:
            if messages is attempts[-1]:
                raise
    raise AssertionError("unreachable")


async def _next_token_logprobs(
    request: Request, body: ScoringBody, prompts: list[PreparedPrompt], labels: Sequence[int], model: ServedModel
) -> list[list[float]]:
    """The logprob of each of `labels` as the token after each prompt, whatever the model itself would say."""
    model.check_generates()
    generator = context_of(request).generator
    prepared = GenerationRequest(
        public_id=public_id("score", current_call(), body.request_id),
        prompts=prompts,
        sampling=SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, logprob_token_ids=tuple(labels)),
        priority=body.priority or 0,
        cache_salt=check_cache_salt(body.cache_salt),
    )
    generation = generator.start(prepared, model, None)
    rows: list[list[float]] = [[]] * len(prompts)
    for update in await all_updates(request, generator, generation):
        if update.logprobs:
            rows[update.index] = [max(logprob, _FLOOR) for logprob in update.logprobs[0].chosen_logprobs]
    return rows


async def _cosines(
    request: Request, body: ScoringBody, pairs: Sequence[tuple[str, str]], model: ServedModel
) -> tuple[list[float], Usage]:
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    wanted = EmbeddingBody(input=texts, priority=body.priority, request_id=body.request_id, cache_salt=body.cache_salt)
    prepared = await prepare_embeddings(request, wanted, model, "score")
    vectors = dict(zip(texts, await embed(request, prepared, model), strict=True))
    return [float(vectors[query] @ vectors[document]) for query, document in pairs], prompt_usage(prepared.prompts)


async def _label_scores(request: Request, body: ScoreBody, model: ServedModel) -> LabelScores:
    """SGLang's form: the probabilities of the labels as the token after query and item."""
    if not body.query or not body.items or body.label_token_ids is None:
        raise RequestError("`label_token_ids` need `query` and `items`", param="query" if not body.query else "items")
    check_vocabulary(body.label_token_ids, model.facts.vocab_size, param="label_token_ids")
    items = split_prompts(body.items)
    prompts = []
    for item in items:
        if isinstance(item, str) != isinstance(body.query, str):
            raise RequestError("`query` and `items` must both be text, or both token ids", param="items")
        parts: list[Any] = [item, body.query] if body.item_first else [body.query, item]
        if isinstance(item, str):
            limit = model.facts.max_model_len
            token_ids = await model.encode("".join(parts), add_special_tokens=True, max_model_len=limit)
        else:
            token_ids = [*parts[0], *parts[1]]
            check_vocabulary(token_ids, model.facts.vocab_size, param="items")
        check_prompt_length(len(token_ids), model.facts.max_model_len)
        prompts.append(PreparedPrompt(token_ids))
    logprobs = await _next_token_logprobs(request, body, prompts, body.label_token_ids, model)
    scores = []
    for row in logprobs:
        scores.append(_softmax(row) if body.apply_softmax else [math.exp(logprob) for logprob in row])
        await asyncio.sleep(0)  # A thousand items of a hundred labels must not hold up everybody else's tokens.
    return LabelScores(scores=scores, model=model.name, usage=prompt_usage(prompts))


def _softmax(logprobs: Sequence[float]) -> list[float]:
    best = max(logprobs)
    values = [math.exp(logprob - best) for logprob in logprobs]
    total = math.fsum(values)
    return [value / total for value in values]


def _listed(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _pairs(queries: list[str], documents: list[str]) -> list[tuple[str, str]]:
    if len(queries) == 1:
        return [(queries[0], document) for document in documents]
    if len(queries) != len(documents):
        raise RequestError(
            f"Input lengths must be either 1:1, 1:N or N:N, but there are {len(queries)} queries and "
            f"{len(documents)} documents",
            param="documents",
        )
    return list(zip(queries, documents, strict=True))


SCORING_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/score", score),
    ("POST", "/score", score),
    ("POST", "/v1/rerank", rerank),
    ("POST", "/rerank", rerank),
    ("POST", "/v2/rerank", rerank),
)
SCORING_BODIES: dict[str, type[BaseModel]] = {
    path: ScoreBody if handler is score else RerankBody for _, path, handler in SCORING_ROUTES
}
