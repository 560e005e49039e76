"""The vendors' published types, read strictly: OpenAI's API description, Anthropic's and Ollama's own clients.

`openai-openapi.json` is OpenAI's description (MIT), reduced to the schemas of what jserve answers. A field that is
null fails where its schema has no null. The few places where OpenAI's own service is known to answer otherwise than it
describes, and jserve as the service, stand in `SERVICE_DIFFERS`.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import anthropic.types
import jsonschema
import ollama
from anthropic.types.shared import ErrorResponse
from pydantic import BaseModel, TypeAdapter

Schema = dict[str, Any]

_NULL = {"type": "null"}
SERVICE_DIFFERS = {
    "CreateChatCompletionStreamResponse.choices.finish_reason": "null until a choice ends; described by `nullable`",
    "CreateCompletionResponse.choices.finish_reason": "of a stream's chunks too: null until a choice ends",
    "CreateCompletionResponse.choices.logprobs.token_logprobs": "null for the first token of an echoed prompt",
    "CreateCompletionResponse.choices.logprobs.top_logprobs": "null for the first token of an echoed prompt",
    "Embedding.embedding": "a text where `encoding_format` is base64",
    "CreateChatCompletionResponse.choices.finish_reason": "with vLLM's field `repetition_detection`: `repetition`",
}
"""Fields whose described type is widened, and why."""

ANTHROPIC_TYPES: dict[str, Any] = {
    "Message": anthropic.types.Message,
    "MessageTokensCount": anthropic.types.MessageTokensCount,
    "ModelInfo": anthropic.types.ModelInfo,
    "ErrorResponse": ErrorResponse,
    "event": anthropic.types.RawMessageStreamEvent,
}
OLLAMA_TYPES: dict[str, type[BaseModel]] = {
    "ChatResponse": ollama.ChatResponse,
    "GenerateResponse": ollama.GenerateResponse,
    "EmbedResponse": ollama.EmbedResponse,
    "EmbeddingsResponse": ollama.EmbeddingsResponse,
    "ListResponse": ollama.ListResponse,
    "ProcessResponse": ollama.ProcessResponse,
    "ShowResponse": ollama.ShowResponse,
}


def check_openai(name: str, message: Any) -> None:
    """Raise AssertionError unless `message` is what the schema `name` says, and names the place."""
    validator = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **_description()})
    problems = [_describe(error) for error in validator.iter_errors(message)]
    assert not problems, f"{name}: {problems}"


def check_openai_event(event: dict[str, Any]) -> None:
    """The same for an event of the Responses API, by its type."""
    check_openai(_event_names()[event["type"]], event)


def check_anthropic(name: str, text: str) -> None:
    """Raise pydantic's ValidationError unless JSON is of this type of Anthropic's client, without any coercion."""
    TypeAdapter(ANTHROPIC_TYPES[name]).validate_json(text, strict=True)


def check_ollama(name: str, text: str) -> None:
    """The same for a type of Ollama's client."""
    OLLAMA_TYPES[name].model_validate_json(text, strict=True)


@cache
def _description() -> Schema:
    raw: Schema = json.loads((Path(__file__).parent / "openai-openapi.json").read_text())
    schemas = copy.deepcopy(raw)["components"]["schemas"]
    for place in SERVICE_DIFFERS:
        _widen(schemas, place)
    return {"components": {"schemas": schemas}}


def _widen(schemas: Schema, place: str) -> None:
    """Let the field hold what the service sends: null, in or outside a list, or a text in place of a list."""
    name, *path = place.split(".")
    parent = schemas[name]
    for field in path[:-1]:
        field_schema = parent["properties"][field]
        inner = field_schema.get("items") or field_schema
        parent = inner.get("anyOf", [inner])[0]
    properties, last = parent["properties"], path[-1]
    described = properties[last]
    if place == "Embedding.embedding":
        properties[last] = {"anyOf": [described, {"type": "string"}]}
    elif place == "CreateChatCompletionResponse.choices.finish_reason":
        described["enum"].append("repetition")
    elif described["type"] == "array":
        described["items"] = {"anyOf": [described["items"], _NULL]}
    else:
        properties[last] = {"anyOf": [described, _NULL]}


@cache
def _event_names() -> dict[str, str]:
    schemas = _description()["components"]["schemas"]
    union = schemas["ResponseStreamEvent"]
    members = [member["$ref"].rpartition("/")[2] for member in union.get("anyOf") or union["oneOf"]]
    return {kind: name for name in members for kind in schemas[name]["properties"]["type"]["enum"]}


def _describe(error: jsonschema.ValidationError) -> str:
    """The deepest cause: of a union, that of the member which comes nearest."""
    best = jsonschema.exceptions.best_match([error])
    return f"{best.json_path}: {best.message[:300]}"
