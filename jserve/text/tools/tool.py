"""A tool as far as text is concerned: its name, and what its arguments may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jserve.text.output.feed import Malformed

NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a tool that takes none."""

_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` is a JSON schema of an object. `is_strict`: arguments must follow it, whatever it takes."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False

    def without_schema(self) -> Tool:
        """The same tool, held to no more than that its arguments are an object."""
        return replace(self, parameters={"type": "object"})

    def types_of(self, parameter: str) -> frozenset[str]:
        """JSON types that a parameter may have; empty where the schema does not say."""
        properties = self.parameters.get("properties")
        schema = properties.get(parameter) if isinstance(properties, Mapping) else None
        return _types(schema)


def check_name(name: str) -> str:
    """`name`, if it can be one: not empty, no white space or control characters, and not endless."""
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or any(c.isspace() for c in name):
        raise Malformed
    return name


def _types(schema: Any) -> frozenset[str]:
    if not isinstance(schema, Mapping):
        return frozenset()
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset((kind,))
    if isinstance(kind, list):
        return frozenset(one for one in kind if isinstance(one, str))
    if isinstance(schema.get("enum"), list) and all(isinstance(value, str) for value in schema["enum"]):
        return frozenset(("string",))
    branches = schema.get("anyOf") or schema.get("oneOf") or []
    return frozenset().union(*map(_types, branches)) if isinstance(branches, list) else frozenset()
