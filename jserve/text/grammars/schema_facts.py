"""What can be known about a JSON schema without compiling it: whether branches exclude each other, and whether any
finite value satisfies it.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

_DEPTH = 8
"""How many references and properties deep a difference between two branches is looked for."""

Resolve = Callable[[str], Any]


def are_disjoint(branches: list[Any], resolve: Resolve) -> bool:
    """Whether no value satisfies two of `branches`: told apart by type, by constants, or by a required property.

    `resolve` gives the schema that a `$ref` names. False where it cannot be seen.
    """
    return all(_differ(left, right, resolve, _DEPTH) for left, right in combinations(branches, 2))


def _differ(left: Any, right: Any, resolve: Resolve, depth: int) -> bool:
    left, right = _target(left, resolve), _target(right, resolve)
    if left is False or right is False:
        return True
    if depth == 0 or not isinstance(left, dict) or not isinstance(right, dict):
        return False
    for a, b in ((left, right), (right, left)):
        for name in ("anyOf", "oneOf"):
            options = a.get(name)
            if isinstance(options, list) and all(_differ(option, b, resolve, depth - 1) for option in options):
                return True
    common = _types(left) & _types(right)
    if not common:
        return True
    constants = _constants(left), _constants(right)
    if constants[0] is not None and constants[1] is not None:
        return not any(_same(one, other) for one in constants[0] for other in constants[1])
    return common == {"object"} and _properties_differ(left, right, resolve, depth)


def _properties_differ(left: dict[str, Any], right: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    ours, theirs = _members(left), _members(right)
    for name in {*_required(left), *_required(right)}:
        if name in ours and name in theirs and _differ(ours[name], theirs[name], resolve, depth - 1):
            return True
    return _forbids_what_is_required(left, right) or _forbids_what_is_required(right, left)


def _forbids_what_is_required(one: dict[str, Any], other: dict[str, Any]) -> bool:
    is_closed = one.get("additionalProperties") is False and not one.get("patternProperties")
    return is_closed and any(name not in _members(one) for name in _required(other))


def _target(schema: Any, resolve: Resolve) -> Any:
    for _ in range(_DEPTH):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolve(schema["$ref"])
    return schema


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type")
    if types is None:
        constants = _constants(schema)
        every = {"null", "boolean", "integer", "fraction", "string", "array", "object"}
        return every if constants is None else {_type_of(value) for value in constants}
    named = {types} if isinstance(types, str) else set(types) if isinstance(types, list) else set()
    return named - {"number"} | ({"integer", "fraction"} if "number" in named else set())


def _type_of(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    is_whole = isinstance(value, float) and value.is_integer()
    return "integer" if is_whole else names.get(type(value), "fraction")


def _constants(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _members(schema: Mapping[str, Any]) -> dict[str, Any]:
    members = schema.get("properties")
    return members if isinstance(members, dict) else {}


def _required(schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def is_productive(root: Any, definitions: Mapping[str, Any]) -> bool:
    """Whether some finite value can satisfy `root`; references are `#/$defs/NAME`. Only endless nesting is looked for.

    The least fixed point: a definition ends where all that it requires ends.
    """
    ends: set[str] = set()
    while True:
        more = {name for name, schema in definitions.items() if name not in ends and _ends(schema, ends)}
        if not more:
            return _ends(root, ends)
        ends |= more


def _ends(schema: Any, ends: set[str]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in ends:
        return False
    if not all(_ends(branch, ends) for branch in schema.get("allOf", ())):
        return False
    if not all(any(_ends(branch, ends) for branch in schema[name]) for name in ("anyOf", "oneOf") if name in schema):
        return False
    if "const" in schema or "enum" in schema:
        return True
    types = _types(schema)
    if types - {"object", "array"}:
        return True
    return ("object" in types and _object_ends(schema, ends)) or ("array" in types and _array_ends(schema, ends))


def _object_ends(schema: dict[str, Any], ends: set[str]) -> bool:
    rest = schema.get("additionalProperties", True)
    patterns = schema.get("patternProperties", {})
    return all(
        _ends(schema["properties"][name] if name in _members(schema) else rest, ends)
        for name in _required(schema)
        if name in _members(schema) or not patterns
    )


def _array_ends(schema: dict[str, Any], ends: set[str]) -> bool:
    least = schema.get("minItems", 0)
    prefix = schema.get("prefixItems", [])
    return all(_ends(item, ends) for item in prefix[:least]) and (
        least <= len(prefix) or _ends(schema.get("items", True), ends)
    )
