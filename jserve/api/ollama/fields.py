"""What /api/chat and /api/generate have in common: fields of theirs as fields of chat and completions bodies."""

from typing import Any, TypeVar

from jserve.api.context import ServerContext
from jserve.api.model.served_model import ServedModel
from jserve.api.ollama.bodies import OllamaGenerationBody
from jserve.api.ollama.options import check_options, sampling_dialect, sampling_fields
from jserve.api.ollama.timestamps import keep_alive_seconds
from jserve.api.openai.bodies import GenerationBody
from jserve.errors import RequestError

Body = TypeVar("Body", bound=GenerationBody)

NAMES = {"response_format": "format", "max_tokens": "options.num_predict"}
"""Fields of chat and of completions that errors may be about, by what they are called in Ollama's API."""

_LEVELS = ("low", "medium", "high", "max")


def generation_fields(body: OllamaGenerationBody, model: ServedModel, server: ServerContext) -> dict[str, Any]:
    """Model's name, options and format, for `make_body`. Raises RequestError."""
    keep_alive_seconds(body.keep_alive)
    options = check_options(body.options)
    limit = model.facts.max_model_len
    fields = sampling_fields(options, model.defaults, limit)
    fields["dialect"] = sampling_dialect(options, model.defaults, limit)
    response_format = _response_format(body.format)
    if response_format is not None:
        fields["response_format"] = response_format
    return fields


def thinking_fields(think: bool | str | None, model: ServedModel) -> dict[str, Any]:
    """`think` as fields of a chat body. Absent, the model does as it is used to, as in Ollama.

    With false the template is told so, and reasoning that comes all the same is left out.
    """
    if think is None or think == "":
        return {}
    if not isinstance(think, bool) and think not in _LEVELS:
        levels = ", ".join(f'"{level}"' for level in _LEVELS)
        raise RequestError(f"invalid think value: {think!r} (must be {levels}, true, or false)", param="think")
    if think and not model.speech().reasons:
        raise RequestError(f'"{model.name}" does not support thinking; leave out think', param="think")
    if isinstance(think, str):
        return {"reasoning_effort": think}
    return {"chat_template_kwargs": {"enable_thinking": think, "thinking": think}, "include_reasoning": think}


def make_body(schema: type[Body], fields: dict[str, Any]) -> Body:
    """An OpenAI body. Stop strings are set past its validation: Ollama's clients may send more than four."""
    stop, dialect = fields.pop("stop"), fields.pop("dialect")
    body = schema.model_validate(fields).model_copy(update={"stop": stop})
    body.speak(dialect)
    return body


def is_unload(body: OllamaGenerationBody) -> bool:
    """Whether a request without a prompt asks to unload the model, and not to load it."""
    return keep_alive_seconds(body.keep_alive) == 0


def _response_format(value: Any) -> dict[str, Any] | None:
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": value}}
    message = f'invalid format: {str(value)[:100]!r}; expected "json" or a JSON schema as an object'
    raise RequestError(message, param="format")
