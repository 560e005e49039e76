"""What `/openapi.json` says of a route beside its path: the body, parameters in the path, and errors."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jserve.api.errors import Dialect

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_TEXT = {"type": "string"}
_ERRORS: dict[Dialect, dict[str, Any]] = {
    Dialect.OPENAI: {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
    Dialect.ANTHROPIC: {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}},
    },
    Dialect.OLLAMA: {"error": _TEXT},
}


def error_schema(dialect: Dialect) -> dict[str, Any]:
    """The JSON schema of an error's body."""
    properties = _ERRORS[dialect]
    return {"type": "object", "required": sorted(properties), "properties": properties}


_FORMS: Mapping[str, dict[str, Any]] = {
    "/v1/files": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "purpose": _TEXT},
        "required": ["file", "purpose"],
    }
}
"""Bodies that are forms, for their files; the others are JSON."""


def describe_route(method: str, path: str, bodies: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The `openapi_extra` of a route. References point into the description itself."""
    described: dict[str, Any] = {"responses": _describe_errors(Dialect.of(path))}
    names = _PARAMETER.findall(path)
    if names:
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    if method == "POST" and path in bodies:
        place = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs/{{model}}"
        schema = bodies[path].model_json_schema(ref_template=place)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if method == "POST" and path in _FORMS:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORMS[path]}}}
    return described


def _describe_errors(dialect: Dialect) -> dict[str, Any]:
    content = {"application/json": {"schema": error_schema(dialect)}}
    return {
        "4XX": {"description": "The request is at fault; the message says how.", "content": content},
        "5XX": {"description": "The server cannot answer it, or not now.", "content": content},
    }
