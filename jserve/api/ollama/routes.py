"""Ollama's routes and bodies, for `app.py`."""

from typing import Any

from pydantic import BaseModel

from jserve.api.ollama import models, store
from jserve.api.ollama.bodies import EmbedBody, EmbeddingsBody, GenerateBody, OllamaChatBody, ShowBody
from jserve.api.ollama.chat import chat
from jserve.api.ollama.embed import embed, ollama_embeddings
from jserve.api.ollama.generate import generate

OLLAMA_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/version", models.ollama_version),
    ("HEAD", "/api/version", models.ollama_version),
    ("GET", "/api/tags", models.tags),
    ("HEAD", "/api/tags", models.tags),
    ("GET", "/api/ps", models.ps),
    ("POST", "/api/show", models.show),
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("POST", "/api/embed", embed),
    ("POST", "/api/embeddings", ollama_embeddings),
    ("POST", "/api/pull", store.pull),
    ("POST", "/api/push", store.push),
    ("POST", "/api/create", store.create),
    ("POST", "/api/copy", store.copy),
    ("DELETE", "/api/delete", store.delete),
    ("HEAD", "/api/blobs/{digest}", store.blob),
    ("POST", "/api/blobs/{digest}", store.blob),
)
OLLAMA_BODIES: dict[str, type[BaseModel]] = {
    "/api/show": ShowBody,
    "/api/chat": OllamaChatBody,
    "/api/generate": GenerateBody,
    "/api/embed": EmbedBody,
    "/api/embeddings": EmbeddingsBody,
}
