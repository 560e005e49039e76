"""POST /v1/score and /v1/rerank, and SGLang's scores of labels."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.generation.request import PreparedPrompt
from jserve.api.http.body import public_id, read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.model.lengths import check_prompt_length
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import ClassifyBody
from jserve.api.openai.classification import classify
from jserve.api.openai.completions import check_vocabulary, split_prompts
from jserve.api.openai.embeddings import prompt_usage
from jserve.api.openai.judging import judge, next_token_logprobs
from jserve.api.openai.scoring_bodies import RerankBody, ScoreBody
from jserve.api.openai.shapes import LabelScores, RankedDocument, Ranking, Score, Scores
from jserve.errors import RequestError


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
    logprobs = await next_token_logprobs(request, body, prompts, body.label_token_ids, model)
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
    ("POST", "/classify", classify),
)
_BODIES: dict[Any, type[BaseModel]] = {score: ScoreBody, rerank: RerankBody, classify: ClassifyBody}
SCORING_BODIES = {path: _BODIES[handler] for _, path, handler in SCORING_ROUTES}
