"""The bodies of Ollama's requests, as pydantic models.

Fields that are not known are accepted and have no effect, as in Ollama.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ModelBody(BaseModel):
    """A request about a model. `name` is what older clients write for `model`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    name: str | None = None

    @property
    def model_name(self) -> str:
        """The model's name as the client wrote it, "" for none."""
        return self.model or self.name or ""


class ShowBody(ModelBody):
    """POST /api/show."""

    verbose: bool | None = False


class LoadedModelBody(ModelBody):
    """What all requests that use the model share."""

    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class OllamaGenerationBody(LoadedModelBody):
    """What /api/generate and /api/chat share. `stream` defaults to true."""

    stream: bool | None = True
    format: Any = None
    think: bool | str | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=0, ge=0, le=20)

    @property
    def is_streamed(self) -> bool:
        return self.stream is not False


class OllamaChatBody(OllamaGenerationBody):
    """POST /api/chat."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(OllamaGenerationBody):
    """POST /api/generate."""

    prompt: str | None = ""
    suffix: str | None = ""
    system: str | None = ""
    template: str | None = ""
    context: list[int] | None = None
    raw: bool | None = False
    images: list[Any] | None = None


class EmbedBody(LoadedModelBody):
    """POST /api/embed."""

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsBody(LoadedModelBody):
    """POST /api/embeddings, which /api/embed has replaced."""

    prompt: str | None = ""
