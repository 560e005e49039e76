"""How well a document meets a query, in the way that suits the model.

- A cross-encoder reads both as one text, and its head says it.
- A model that generates is asked, in the words that Qwen3-Reranker was trained on (its model card), through the chat
  template: the score is the probability of "yes" against that of "no" as the next token, between 0 and 1. An instruct
  model that was never trained for it orders documents too, if less well.
- With `--score-method cosine`, and of a model for embeddings, it is the cosine of two embeddings, made as
  /v1/embeddings makes them: between -1 and 1, and only as good as they are.
"""

import math
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from jserve.api.call import current_call
from jserve.api.context import context_of
from jserve.api.errors import invalid
from jserve.api.generation.request import GenerationRequest, PreparedPrompt
from jserve.api.generation.usage import Usage
from jserve.api.http.answers import all_updates
from jserve.api.http.body import check_cache_salt, public_id
from jserve.api.model.lengths import check_prompt_length
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import EmbeddingBody
from jserve.api.openai.classification import cross_scores
from jserve.api.openai.embeddings import embed, prepare_embeddings, prompt_usage
from jserve.api.openai.scoring_bodies import ScoringBody
from jserve.errors import RequestError
from jserve.protocol import SamplingParams

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
ANSWERS = ("yes", "no")
_FLOOR = -600.0
"""In place of the logprob of a token that is impossible, so that a difference stays a number."""


async def judge(
    request: Request, body: ScoringBody, pairs: Sequence[tuple[str, str]], model: ServedModel
) -> tuple[list[float], Usage]:
    """The score of every (query, document). Raises RequestError."""
    reads_pairs = model.classifier is not None and not model.has_template
    if body.truncate_prompt_tokens is not None and not reads_pairs:
        raise RequestError(
            "`truncate_prompt_tokens` is not supported here: it would cut the question off; shorten the document",
            param="truncate_prompt_tokens",
        )
    if model.classifier is None and (
        context_of(request).settings.score_method == "cosine" or model.embedder is not None
    ):
        return await _cosines(request, body, pairs, model)
    prompts = [
        await (_pair if reads_pairs else _question)(query, document, body, model, model.facts.max_model_len)
        for query, document in pairs
    ]
    if model.classifier is not None:
        return await cross_scores(request, _prepared(prompts, body, SamplingParams(max_tokens=0)), model), prompt_usage(
            prompts
        )
    rows = await next_token_logprobs(request, body, prompts, _labels(model), model)
    return [1.0 / (1.0 + math.exp(no - yes)) for yes, no in rows], prompt_usage(prompts)


def _labels(model: ServedModel) -> list[int]:
    """The tokens that stand for relevant and for not. Raises RequestError where there are none."""
    if model.ranking_tokens is not None:
        return list(model.ranking_tokens)
    answers = [model.tokenizer.encode(answer, add_special_tokens=False) for answer in ANSWERS]
    labels = [tokens[0] for tokens in answers if tokens]
    if len(set(labels)) != len(ANSWERS):
        raise RequestError(
            "this model's tokenizer has no token for yes or for no, so it cannot be asked; start the server with "
            "--score-method cosine"
        )
    return labels


async def _pair(query: str, document: str, body: ScoringBody, model: ServedModel, limit: int) -> PreparedPrompt:
    """Both as one text; of the document, as much as `truncate_prompt_tokens` leaves."""
    shortest = body.truncate_prompt_tokens
    if shortest is not None and shortest > limit:
        raise invalid(
            f"truncate_prompt_tokens value is greater than max_model_len ({limit}). "
            "Please request a smaller truncation size.",
            param="truncate_prompt_tokens",
            value=shortest,
        )
    if shortest is not None:
        document = await model.beginning(document, limit)
    pair = await model.encode_pair(query, document, max_model_len=limit)
    if shortest is not None:
        pair = pair.shortened(limit if shortest == -1 else shortest)
    check_prompt_length(len(pair.token_ids), limit, generates=False)
    return PreparedPrompt(pair.token_ids, second_text=pair.second_text)


async def _question(query: str, document: str, body: ScoringBody, model: ServedModel, limit: int) -> PreparedPrompt:
    """The prompt after which the model says yes or no."""
    text = await _rendered(query, document, body.instruction, model, limit)
    token_ids = await model.encode(text, add_special_tokens=False, max_model_len=limit)
    check_prompt_length(len(token_ids), limit, generates=model.generates)
    return PreparedPrompt(token_ids)


async def _rendered(query: str, document: str, instruction: str | None, model: ServedModel, limit: int) -> str:
    """By a template that knows queries and documents, as sentence-transformers' rerankers have it, or else in words. A
    template that refuses a system message has it before the user's.
    """
    content = f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
    user = {"role": "user", "content": content}
    attempts: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": JUDGE}, user],
        [{"role": "user", "content": f"{JUDGE}\n\n{content}"}],
    ]
    if model.has_template_of_pairs:
        asked_for = [{"role": "system", "content": instruction}] if instruction else []
        attempts = [[*asked_for, {"role": "query", "content": query}, {"role": "document", "content": document}]]
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


async def next_token_logprobs(
    request: Request, body: ScoringBody, prompts: list[PreparedPrompt], labels: Sequence[int], model: ServedModel
) -> list[list[float]]:
    """The logprob of each of `labels` as the token after each prompt, whatever the model itself would say."""
    model.check_generates()
    generator = context_of(request).generator
    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, logprob_token_ids=tuple(labels))
    prepared = _prepared(prompts, body, sampling)
    generation = generator.start(prepared, model, None)
    rows: list[list[float]] = [[]] * len(prompts)
    for update in await all_updates(request, generator, generation):
        if update.logprobs:
            rows[update.index] = [max(logprob, _FLOOR) for logprob in update.logprobs[0].chosen_logprobs]
    return rows


def _prepared(prompts: list[PreparedPrompt], body: ScoringBody, sampling: SamplingParams) -> GenerationRequest:
    return GenerationRequest(
        public_id=public_id("score", current_call(), body.request_id),
        prompts=prompts,
        sampling=sampling,
        priority=body.priority or 0,
        cache_salt=check_cache_salt(body.cache_salt),
    )


async def _cosines(
    request: Request, body: ScoringBody, pairs: Sequence[tuple[str, str]], model: ServedModel
) -> tuple[list[float], Usage]:
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    wanted = EmbeddingBody(input=texts, priority=body.priority, request_id=body.request_id, cache_salt=body.cache_salt)
    prepared = await prepare_embeddings(request, wanted, model, "score")
    vectors = dict(zip(texts, await embed(request, prepared, model), strict=True))
    return [float(vectors[query] @ vectors[document]) for query, document in pairs], prompt_usage(prepared.prompts)
