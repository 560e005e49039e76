"""POST /api/embed and /api/embeddings: a vector of length 1 for each input.

It is the final hidden state of the input's last token, or the mean of all with `--pooling mean`. A model for embeddings
pools as its own files say.

Each input has its vector, an empty one too. As in Ollama an input over the context is cut at its end, unless the
request says `truncate: false`: its clients count on that. `dimensions` keeps the first ones and scales them to unit
length again, which means something for models trained for it (Matryoshka) only.
"""

import time
from itertools import chain

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.context import ServerContext, context_of
from jserve.api.generation.generation import Generation
from jserve.api.http.body import read_body
from jserve.api.http.pieces import BodyInPieces
from jserve.api.json_writer import HOLE, JsonResponse, encode_around_holes, list_in_pieces
from jserve.api.model.served_model import ServedModel
from jserve.api.ollama.bodies import EmbedBody, EmbeddingsBody, LoadedModelBody
from jserve.api.ollama.names import served_name
from jserve.api.ollama.options import check_options
from jserve.api.ollama.timestamps import keep_alive_seconds, nanoseconds
from jserve.api.openai.bodies import MAX_PROMPTS, EmbeddingBody
from jserve.api.openai.embeddings import prepare_embeddings, shortened, vectors_of
from jserve.errors import RequestError


async def embed(request: Request) -> Response:
    """Handle one request of the present form. No input gives no embeddings: Ollama loads the model then."""
    received = time.time()
    server = context_of(request)
    body = await read_body(request, EmbedBody, any_media_type=True)
    model = _checked(body, server)
    if body.dimensions is not None and body.dimensions < 1:
        raise RequestError(f"dimensions is {body.dimensions} but must be at least 1", param="dimensions")
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    answer = {"model": body.model_name or model.name, "embeddings": []}
    if not texts or body.input == "":
        return JsonResponse(answer)
    generation = await _start(request, texts, model, truncates=body.truncate is not False)
    vectors = await vectors_of(request, generation)
    size = body.dimensions
    if size is not None and size < len(vectors[0]):
        vectors = [shortened(vector, size) for vector in vectors]
    before, after = encode_around_holes(
        answer
        | {
            "embeddings": [HOLE],
            "total_duration": nanoseconds(received, time.time()),
            "load_duration": nanoseconds(received, min(life.scheduled for life in generation.lives)),
            "prompt_eval_count": generation.num_prompt_tokens,
        }
    )
    return BodyInPieces(chain([before], list_in_pieces([vector.tolist()] for vector in vectors), [after]))


async def ollama_embeddings(request: Request) -> Response:
    """Handle one request of the former form: one prompt, one embedding."""
    server = context_of(request)
    body = await read_body(request, EmbeddingsBody, any_media_type=True)
    model = _checked(body, server)
    if not body.prompt:
        return JsonResponse({"embedding": []})
    [vector] = await vectors_of(request, await _start(request, [body.prompt], model, truncates=True))
    return JsonResponse({"embedding": vector.tolist()})


def _checked(body: LoadedModelBody, server: ServerContext) -> ServedModel:
    model = server.admit(served_name(server.settings, body.model_name))
    keep_alive_seconds(body.keep_alive)
    check_options(body.options)
    return model


async def _start(request: Request, texts: list[str], model: ServedModel, *, truncates: bool) -> Generation:
    if len(texts) > MAX_PROMPTS:
        raise RequestError(f"input holds {len(texts)} texts but at most {MAX_PROMPTS} are allowed", param="input")
    server = context_of(request)
    limit = -1 if truncates else None
    body = EmbeddingBody(input=texts, truncate_prompt_tokens=limit, truncation_side="right")
    prepared = await prepare_embeddings(request, body, model, "ollama")
    return server.generator.start(prepared, model, None)
