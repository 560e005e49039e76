"""Values of a schema's keywords, checked: each reader refuses one of the wrong kind and says where it stands."""

from typing import Any

from jserve.errors import RequestError

TYPES = frozenset({"null", "boolean", "number", "integer", "string", "array", "object"})
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("required", "enum", "prefixItems", "allOf", "anyOf", "oneOf"), (list,)),
    **dict.fromkeys(("properties", "patternProperties"), (dict,)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), (int, float)),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (bool, int, float)),
    **dict.fromkeys(("pattern", "format", "$ref"), (str,)),
}


def list_of(value: Any, name: str, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{shown(path)}: `{name}` must be an array, not {kind(value)}")
    return value


def strings_of(value: Any, name: str, path: str) -> list[str]:
    if not all(isinstance(entry, str) for entry in list_of(value, name, path)):
        raise RequestError(f"{shown(path)}: `{name}` must hold strings")
    return value  # type: ignore[no-any-return]


def mapping_of(value: Any, name: str, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{shown(path)}: `{name}` must be an object, not {kind(value)}")
    return value


def count_of(value: Any, name: str, path: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise RequestError(f"{shown(path)}: `{name}` must be a whole number from 0 to {2**31 - 1}, not {value!r:.99}")
    return value


def is_well_formed(name: str, value: Any) -> bool:
    """Whether a keyword's value is of the kind that the keyword has, so that it says anything."""
    if name == "type":
        names = [value] if isinstance(value, str) else value
        return isinstance(names, list) and bool(names) and all(isinstance(one, str) and one in TYPES for one in names)
    kinds = _KINDS.get(name)
    if kinds is None:
        return True
    if isinstance(value, bool) and bool not in kinds:
        return False
    if name == "required":
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, kinds)


def kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shown(pointer: str) -> str:
    """A place in the schema, `$.properties.name`: a pointer with slashes would look like a file's path."""
    path = "$" + pointer.removeprefix("#").replace("/", ".")
    return path if len(path) <= 120 else f"{path[:80]}…{path[-38:]}"
