"""JSON schemas as people write them, each with keywords that can be enforced."""

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"}},
    "required": ["street"],
    "additionalProperties": False,
}


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Tree(BaseModel):
    value: float
    children: list["Tree"] = Field(default_factory=list, max_length=2)


class Owner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=20)]
    colour: Colour
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    scores: dict[str, int] = {}


SCHEMAS: dict[str, Any] = {
    "empty": {},
    "anything": True,
    "object": {"type": "object"},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean-or-null": {"type": ["boolean", "null"]},
    "integer-range": {"type": "integer", "minimum": -5, "exclusiveMaximum": 1000},
    "number-range": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "number-from": {"type": "number", "minimum": 0.5},
    "number-below": {"type": "number", "exclusiveMaximum": 0},
    "multiple": {"type": "integer", "multipleOf": 7},
    "cents": {"type": "number", "multipleOf": 0.01, "minimum": 0},
    "wide-bounds": {"type": "integer", "minimum": -1e300, "maximum": 1e300},
    "draft-4-bounds": {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
    "flat": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "weight": {"type": "number"}},
        "required": ["name", "age", "weight"],
        "additionalProperties": False,
    },
    "optional-properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["b"],
    },
    "required-undeclared": {"type": "object", "required": ["x", "y"]},
    "untyped-properties": {"properties": {"a": {"type": "integer"}}},
    "nested": {
        "type": "object",
        "properties": {
            "person": {
                "type": "object",
                "properties": {"address": ADDRESS, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
                "required": ["address", "tags"],
            }
        },
        "required": ["person"],
    },
    "unicode-keys": {
        "type": "object",
        "properties": {"größe": {"type": "number"}, "名前": {"type": "string"}, 'a"b\\c\n': {"type": "null"}},
        "required": ["größe", "名前", 'a"b\\c\n'],
        "additionalProperties": False,
    },
    "unicode-enum": {"enum": ["é", "日本", "👍", 'quo"te', "line\nbreak", ""]},
    "mixed-enum": {"enum": [1, -2.5, "x", None, True, {"a": [1, {"b": None}]}, []]},
    "const": {"const": {"version": 2, "items": ["x", 1.5]}},
    "array-bounds": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 5}],
        "items": False,
        "minItems": 2,
    },
    "draft-7-tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "integer"}, {"type": "boolean"}],
        "additionalItems": False,
    },
    "open-tuple": {"type": "array", "prefixItems": [{"type": "boolean"}], "maxItems": 3},
    "free-items": {"type": "array", "maxItems": 3},
    "string-length": {"type": "string", "minLength": 3, "maxLength": 8},
    "pattern": {"type": "string", "pattern": "^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$"},
    "pattern-unanchored": {"type": "string", "pattern": "[A-Z]{2}/\\d+", "maxLength": 12},
    **{
        f"format-{name}": {"type": "string", "format": name, "maxLength": 60}
        for name in ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
    },
    "described-format": {"type": "object", "properties": {"secret": {"type": "string", "format": "password"}}},
    "any-of": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 4}, {"type": "null"}]},
    "any-of-objects": {
        "anyOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "one-of-types": {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
    "one-of-references": {
        "$defs": {
            "circle": {
                "type": "object",
                "properties": {"shape": {"const": "circle"}, "r": {"type": "number"}},
                "required": ["shape", "r"],
            },
            "square": {
                "type": "object",
                "properties": {"shape": {"enum": ["square", "box"]}, "side": {"type": "number"}},
                "required": ["shape", "side"],
            },
        },
        "oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}],
    },
    "all-of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "number"}}, "required": ["b", "c"]},
        ]
    },
    "all-of-single": {"allOf": [{"type": "integer", "minimum": 1}], "description": "as pydantic 1 writes it"},
    "reference-with-siblings": {
        "$defs": {"base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
        "$ref": "#/$defs/base",
        "properties": {"note": {"type": "string", "maxLength": 10}},
        "required": ["note"],
    },
    "base-and-choice": {
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
        "anyOf": [
            {"properties": {"a": {"type": "number"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"]},
        ],
    },
    "recursive": {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
    "mutually-recursive": {
        "definitions": {
            "even": {"type": "array", "items": {"$ref": "#/definitions/odd"}, "maxItems": 2},
            "odd": {"type": "object", "properties": {"even": {"$ref": "#/definitions/even"}}, "required": ["even"]},
        },
        "$ref": "#/definitions/even",
    },
    "pointer-into-properties": {
        "type": "object",
        "properties": {"first/name": {"type": "string", "maxLength": 3}, "b": {"$ref": "#/properties/first~1name"}},
        "required": ["b"],
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 3},
    "pattern-properties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,4}$": {"type": "string", "maxLength": 3}, "^n[0-9]$": {"type": "number"}},
        "additionalProperties": False,
    },
    "closed-and-empty": {"type": "object", "additionalProperties": False},
    "unevaluated": {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
    "minimum-of-required": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}},
        "required": ["a", "b"],
        "minProperties": 2,
    },
    "zod-record": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "boolean"}},
    "openai-strict-function": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City and country, e.g. Bogotá, Colombia"},
            "units": {"type": ["string", "null"], "enum": ["celsius", "fahrenheit", None]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["location", "units", "days"],
        "additionalProperties": False,
    },
    "openai-steps": {
        "type": "object",
        "$defs": {
            "step": {
                "type": "object",
                "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                "required": ["explanation", "output"],
                "additionalProperties": False,
            }
        },
        "properties": {"steps": {"type": "array", "items": {"$ref": "#/$defs/step"}}, "final": {"type": "string"}},
        "required": ["steps", "final"],
        "additionalProperties": False,
    },
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/schema",
        "$comment": "c",
        "title": "t",
        "type": "object",
        "properties": {"title": {"type": "string", "default": "x", "examples": ["y"], "x-order": 1, "nullable": True}},
        "required": ["title"],
    },
    "pydantic-union": Owner.model_json_schema(),
    "pydantic-tree": Tree.model_json_schema(),
}
