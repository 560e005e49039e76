"""POST /classify, and the scores of cross-encoders: what a model with a classifier's head says of texts.

Shapes are vLLM's. A model with one label is a cross-encoder, which reads a query and a document as one text.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.context import context_of
from jserve.api.generation.request import GenerationRequest
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import ClassifyBody
from jserve.api.openai.embeddings import prepare_pooled, prompt_usage, vectors_of
from jserve.api.openai.shapes import Classification, Classifications
from jserve.checkpoint.classifier import Activation, Classifier
from jserve.errors import RequestError


async def classify(request: Request) -> Response:
    """Handle one request for labels."""
    body = await read_body(request, ClassifyBody)
    model = context_of(request).admit(body.model)
    classifier = _classifier(model)
    prepared = await prepare_pooled(request, body, model, "classify", classifier.pooling)
    rows = await _logits(request, replace(prepared, normalizes=False), model)
    if body.use_activation is not False:
        rows = [activated(row, classifier.activation) for row in rows]
    data = []
    for index, row in enumerate(rows):
        best = max(range(len(row)), key=row.__getitem__)
        data.append(Classification(index=index, label=classifier.labels[best], probs=row, num_classes=len(row)))
    answer = Classifications(
        id=prepared.public_id,
        created=int(time.time()),
        model=model.name,
        data=data,
        usage=prompt_usage(prepared.prompts),
    )
    return JsonResponse(answer)


async def cross_scores(request: Request, prepared: GenerationRequest, model: ServedModel) -> list[float]:
    """What a cross-encoder says of each prompt, which is a pair of texts. Raises RequestError for another model."""
    classifier = _classifier(model)
    if not classifier.is_cross_encoder:
        raise RequestError(
            f"this model gives each text one of {len(classifier.labels)} labels; a model that scores pairs has one. "
            "Send texts to /classify",
            param="model",
        )
    prepared = replace(prepared, pooling=classifier.pooling, normalizes=False)
    return [activated(row, classifier.activation)[0] for row in await _logits(request, prepared, model)]


async def _logits(request: Request, prepared: GenerationRequest, model: ServedModel) -> list[list[float]]:
    """The number of each label, for each prompt."""
    generation = context_of(request).generator.start(prepared, model, None)
    rows: list[list[float]] = [vector.tolist() for vector in await vectors_of(request, generation)]
    return rows


def _classifier(model: ServedModel) -> Classifier:
    if model.classifier is None:
        raise RequestError(
            f'the model "{model.name}" has no head for labels (its architecture is not …ForSequenceClassification); '
            "start the server with a classifier or a cross-encoder",
            param="model",
        )
    return model.classifier


def activated(logits: Sequence[float], activation: Activation) -> list[float]:
    """Probabilities, or what else the model's author makes of logits."""
    if activation == "softmax":
        highest = max(logits)
        shares = [math.exp(logit - highest) for logit in logits]
        total = math.fsum(shares)
        return [share / total for share in shares]
    if activation == "sigmoid":
        return [0.5 * (1.0 + math.tanh(0.5 * logit)) for logit in logits]  # e to a power overflows
    return list(map(math.tanh, logits)) if activation == "tanh" else list(logits)
