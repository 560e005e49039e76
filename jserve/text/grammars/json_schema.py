"""JSON schemas as a grammar can enforce them: every keyword is kept or refused, every number is bounded.

`bound_schema` rewrites a schema so that llguidance compiles it and so that nothing in it is endless by accident:
numbers have at most 19 + 10 digits and no exponent, values of any shape nest at most `ANY_DEPTH` deep. What the
result allows is a subset of what the schema allows. Strings, arrays and maps stay as long as the schema says.

A tool that is not strict is held to as much of its schema as a grammar can hold it to (`Strictness`).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import unquote

from jserve.errors import RequestError
from jserve.text.grammars.schema_facts import are_disjoint, is_productive
from jserve.text.grammars.schema_keywords import (
    APPLICATORS,
    DRAFTS,
    ENFORCED,
    ENFORCED_FORMATS,
    REFUSED,
    STANDARD_FORMATS,
    is_droppable,
    is_harmless,
)
from jserve.text.grammars.schema_values import TYPES, count_of, kind, list_of, mapping_of, shown, strings_of

MAX_DEPTH = 64
"""Deepest nesting of a schema's subschemas."""
MAX_CONTAINERS = 400
"""Deepest nesting of JSON in a schema, its constants included; Python's own limit is a little above."""
ANY_DEPTH = 12
"""Deepest nesting of a value that the schema leaves free."""
MAX_NUMBER = 9e18
"""A power of ten times nine below 2**63, and exact in float64, which llguidance keeps bounds in."""
FINEST = 1e-10
"""The smallest step that llguidance can count in."""

_UNSATISFIABLE = (
    "no finite value satisfies the schema: something that it requires is impossible, or contains itself without end"
)

Schema = dict[str, Any] | bool
Strictness = Literal["exact", "enforceable", "shape"]
"""What becomes of keywords that cannot be enforced. "exact": they are refused. "enforceable": they are dropped, since
they only narrow. "shape": what limits texts and numbers is dropped too; types, members and constants stay."""


def bound_schema(schema: Any, strictness: Strictness = "exact") -> dict[str, Any]:
    """`schema` with local references only, bounded numbers, and nothing that would be ignored.

    An empty schema means any object. An object that lists its properties and says nothing of others has no others:
    JSON Schema would allow any, and a small model goes on adding them for ever. Raises RequestError that names
    the keyword and the place.
    """
    _check_nesting(schema)
    if schema == {}:
        schema = {"type": "object"}
    if not isinstance(schema, dict | bool):
        raise RequestError(f"a JSON schema must be an object or a boolean, not {type(schema).__name__}")
    try:
        return _Bounder(schema, strictness).run()
    except RecursionError:
        raise RequestError("the schema nests, or refers to itself, too deeply") from None


class _Bounder:
    """One walk over one schema."""

    def __init__(self, root: Schema, strictness: Strictness) -> None:
        self._root = root
        self._drops = strictness != "exact"
        self._is_shape = strictness == "shape"
        self._definitions: dict[str, Schema] = {}
        self._names: dict[tuple[str, bool], str] = {}
        self._pending: list[tuple[str, bool]] = []

    def run(self) -> dict[str, Any]:
        bounded = self._whole(self._root, "#", 0)
        while self._pending:
            pointer, is_part = target = self._pending.pop()
            rewrite = self._part if is_part else self._whole
            self._definitions[self._names[target]] = rewrite(self._resolve(pointer, pointer), pointer, 0)
        if isinstance(bounded, bool):
            if not bounded:
                raise RequestError("the schema is `false`, which no value satisfies")
            bounded = self._anything(0)
        if not is_productive(bounded, self._definitions):
            raise RequestError(_UNSATISFIABLE)
        return bounded | ({"$defs": self._definitions} if self._definitions else {})

    def _whole(self, schema: Any, path: str, depth: int) -> Schema:
        """The schema of a value that no other schema restricts as well."""
        keywords = self._keywords(schema, path, depth)
        if isinstance(keywords, bool):
            return self._anything(0) if keywords else False
        only = next(iter(keywords)) if len(keywords) == 1 else ""
        if only == "$ref":
            return self._reference(keywords["$ref"], path, is_part=False)
        if only in ("anyOf", "oneOf"):
            branches = list_of(keywords[only], only, path)
            bounded = [self._whole(branch, f"{path}/{only}/{i}", depth + 1) for i, branch in enumerate(branches)]
            return {self._union(only, branches): bounded}
        if only == "allOf" and len(branches := list_of(keywords[only], only, path)) == 1:
            return self._whole(branches[0], f"{path}/allOf/0", depth + 1)
        parts = list(self._parts(keywords, path, set()))
        return self._bound(self._rewrite(keywords, path, depth), keywords, parts)

    def _part(self, schema: Any, path: str, depth: int) -> Schema:
        """The schema of a value that another one restricts as well, and bounds."""
        keywords = self._keywords(schema, path, depth)
        return keywords if isinstance(keywords, bool) else self._rewrite(keywords, path, depth)

    def _keywords(self, schema: Any, path: str, depth: int) -> Schema:
        """What `schema` says beside annotations, in today's words; True where it says nothing."""
        if depth > MAX_DEPTH:
            raise RequestError(f"the schema is nested deeper than {MAX_DEPTH} levels (at {shown(path)})")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            if self._drops:
                return True
            raise RequestError(f"{shown(path)}: a schema must be an object or a boolean, not {kind(schema)}")
        kept = {}
        for name, value in self._enforceable(schema).items():
            if name in REFUSED:
                if not is_harmless(name, value):
                    raise RequestError(f"{shown(path)}: `{name}` {REFUSED[name]}")
            elif name == "$schema":
                _check_draft(value, path)
            elif name in ("$id", "id"):
                if path != "#" and isinstance(value, str) and not value.startswith("#") and name == "$id":
                    raise RequestError(f"{shown(path)}: `$id` below the root would change what `$ref`s mean")
            elif name in ENFORCED:
                kept[name] = value
        _modernise(kept, path)
        return kept or True

    def _enforceable(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`schema` without the keywords that this strictness drops."""
        if not self._drops:
            return schema
        kept = {name: value for name, value in schema.items() if not is_droppable(name, value, shape=self._is_shape)}
        if "patternProperties" in schema and "patternProperties" not in kept:
            kept.pop("additionalProperties", None)  # Names that the patterns allow must not become forbidden.
            kept |= {"additionalProperties": True} if "properties" in kept else {}
        if kept.keys() & (APPLICATORS | {"$ref"}):
            kept.pop("unevaluatedProperties", None)
        return kept

    def _rewrite(self, keywords: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        """The same keywords, with every subschema bounded."""
        out: dict[str, Any] = {}
        for name, value in keywords.items():
            here = f"{path}/{name}"
            if name == "$ref":
                # As a branch, so that it may stand beside keywords that are added.
                out.setdefault("allOf", []).append(self._reference(value, path, is_part=True))
            elif name in ("properties", "patternProperties"):
                members = mapping_of(value, name, path)
                out[name] = {key: self._whole(sub, f"{here}/{key}", depth + 1) for key, sub in members.items()}
            elif name in ("items", "additionalProperties"):
                out[name] = self._whole(value, here, depth + 1)
            elif name == "prefixItems":
                items = list_of(value, name, path)
                out[name] = [self._whole(item, f"{here}/{i}", depth + 1) for i, item in enumerate(items)]
            elif name in APPLICATORS:
                branches = list_of(value, name, path)
                bounded = [self._part(branch, f"{here}/{i}", depth + 1) for i, branch in enumerate(branches)]
                if name == "allOf":
                    out.setdefault("allOf", []).extend(branch for branch in bounded if branch is not True)
                else:
                    out.setdefault("allOf", []).append({self._union(name, branches): bounded})
            else:
                self._keep(out, name, value, keywords, path)
        if not out.get("allOf", True):
            del out["allOf"]
        return out

    def _keep(self, out: dict[str, Any], name: str, value: Any, keywords: dict[str, Any], path: str) -> None:
        """Copy a keyword without subschemas, once its value is known to be enforceable."""
        if name == "format":
            if value in ENFORCED_FORMATS:
                out[name] = value
            elif value in STANDARD_FORMATS:
                known = ", ".join(sorted(ENFORCED_FORMATS))
                raise RequestError(
                    f"{shown(path)}: `format` {value!r} cannot be enforced; leave it out or use `pattern` "
                    f"(enforced are {known})"
                )
            return
        if name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            out[name] = _number_of(value, name, path)
        elif name in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
            out[name] = count_of(value, name, path)
        elif name == "required":
            out[name] = list(dict.fromkeys(strings_of(value, name, path)))
        elif name == "enum":
            out[name] = list_of(value, name, path)
        else:
            out[name] = value
        if name == "minProperties":
            if out[name] <= len(list_of(keywords.get("required", []), "required", path)):
                del out[name]
            elif out[name] > 1:  # A map's keys may repeat in the text, and a repeated key counts once.
                message = "`minProperties` above 1 cannot be enforced; name the properties in `required`"
                raise RequestError(f"{shown(path)}: {message}")

    def _bound(self, out: dict[str, Any], own: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Add to `out` what keeps numbers, undeclared properties and undeclared items bounded."""
        if "enum" in own or "const" in own:
            return out
        types = _types_of(own)
        if types & {"number", "integer"}:
            _bound_numbers(out, has_step=any("multipleOf" in part for part in parts), is_integer="number" not in types)
        if "object" in types:
            self._bound_object(out, own, parts)
        if "array" in types and not (out.keys() & {"items"}):
            declares = [part for part in parts if part.keys() & {"items", "prefixItems"}]
            if not declares or len(parts) == 1:
                out["items"] = self._anything(1)
        return out

    def _bound_object(self, out: dict[str, Any], own: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        if any("additionalProperties" in part for part in parts):
            return
        lists = any(part.keys() & {"properties", "patternProperties"} for part in parts)
        if not lists:
            out["additionalProperties"] = self._anything(1)
        elif not any("patternProperties" in part for part in parts):
            # Parts may declare different properties, each knowing nothing of the others': all are allowed, no more.
            declared: dict[str, Schema] = {}
            for part in parts:
                declared |= dict.fromkeys(part.get("properties", ()), True)
            for name in (name for part in parts for name in part.get("required", ())):
                declared.setdefault(name, self._anything(1))
            out["properties"] = declared | out.get("properties", {})
            out["additionalProperties"] = False
        elif len(parts) == 1:
            out["additionalProperties"] = False

    def _anything(self, depth: int) -> dict[str, Any]:
        """A reference to the schema of any value, which is `ANY_DEPTH - depth` levels deep."""
        if "any0" not in self._definitions:
            scalars: list[Schema] = [{"type": ["null", "boolean", "string"]}, _bound_numbers({"type": "number"})]
            for level in range(ANY_DEPTH):
                below = {"$ref": f"#/$defs/any{level + 1}"}
                containers = [{"type": "array", "items": below}, {"type": "object", "additionalProperties": below}]
                self._definitions[f"any{level}"] = {"anyOf": [*scalars, *containers]}
            self._definitions[f"any{ANY_DEPTH}"] = {"anyOf": scalars}
        return {"$ref": f"#/$defs/any{depth}"}

    def _reference(self, value: Any, path: str, *, is_part: bool) -> dict[str, Any]:
        """A reference to the target, which is rewritten later, once."""
        pointer = self._pointer(value, path)
        target = pointer, is_part
        if target not in self._names:
            self._resolve(pointer, path)
            self._names[target] = f"d{len(self._names)}"
            self._pending.append(target)
        return {"$ref": f"#/$defs/{self._names[target]}"}

    def _pointer(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not value.startswith("#"):
            raise RequestError(
                f"{shown(path)}: `$ref` must point into the schema itself (`#/...`), not to {value!r:.99}"
            )
        if value == "#" or value.startswith("#/"):
            return value
        raise RequestError(f"{shown(path)}: `$ref` to the anchor {value!r:.99} is not supported; write it as `#/...`")

    def _resolve(self, pointer: str, path: str) -> Any:
        target: Any = self._root
        for step in pointer.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise RequestError(f"{shown(path)}: `$ref` points to {shown(pointer)}, which the schema does not have")
        return target

    def _parts(self, keywords: Mapping[str, Any], path: str, seen: set[str]) -> Iterator[dict[str, Any]]:
        """`keywords` and all schemas that restrict the same value with it."""
        yield dict(keywords)
        for name in keywords:
            for branch in list_of(keywords[name], name, path) if name in APPLICATORS else ():
                if isinstance(branch, dict):
                    yield from self._parts(self._enforceable(branch), path, seen)
        if "$ref" in keywords and (pointer := self._pointer(keywords["$ref"], path)) not in seen:
            target = self._resolve(pointer, path)
            seen.add(pointer)
            if isinstance(target, dict):
                yield from self._parts(self._enforceable(target), path, seen)

    def _union(self, name: str, branches: list[Any]) -> str:
        """`anyOf` in the place of a `oneOf` whose branches exclude each other, which llguidance sees only in part.

        Where keywords are dropped, that no second branch is satisfied is one of the things that only narrow.
        """
        if name == "oneOf" and self._drops:
            return "anyOf"
        if name == "oneOf" and are_disjoint(branches, lambda pointer: self._resolve(pointer, "#")):
            return "anyOf"
        return name


def _bound_numbers(out: dict[str, Any], *, has_step: bool = False, is_integer: bool = False) -> dict[str, Any]:
    """Numbers get an end on both sides, and a finest step where they may have a fraction."""
    bounds = [float(out[name]) for name in _BOUNDS if name in out]
    finest = min(
        [abs(bound) for bound in bounds if bound] + ([max(bounds) - min(bounds)] if len(bounds) > 1 else [1.0])
    )
    for name, exclusive, end in (
        ("minimum", "exclusiveMinimum", -MAX_NUMBER),
        ("maximum", "exclusiveMaximum", MAX_NUMBER),
    ):
        bound = out.get(name, out.get(exclusive))
        if bound is None or (bound - end) * end > 0:
            out.pop(exclusive, None)
            out[name] = end
    if not has_step and not is_integer and finest >= FINEST:
        out["multipleOf"] = FINEST
    return out


_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NESTS = (dict, list)


def _types_of(keywords: Mapping[str, Any]) -> frozenset[str]:
    types = keywords.get("type", TYPES)
    return frozenset({types} if isinstance(types, str) else types) & TYPES


def _modernise(keywords: dict[str, Any], path: str) -> None:
    """Older drafts' `items` lists and boolean exclusive bounds, and equal words for others, in 2020-12's words."""
    if isinstance(keywords.get("items"), list):
        keywords["prefixItems"] = keywords.pop("items")
        if "additionalItems" in keywords:
            keywords["items"] = keywords["additionalItems"]
    keywords.pop("additionalItems", None)
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(keywords.get(exclusive), bool):
            is_exclusive = keywords.pop(exclusive)
            if is_exclusive and bound in keywords:
                keywords[exclusive] = keywords.pop(bound)
    if "unevaluatedProperties" in keywords:
        value = keywords.pop("unevaluatedProperties")
        if keywords.keys() & (APPLICATORS | {"$ref"}):
            raise RequestError(f"{shown(path)}: `unevaluatedProperties` cannot be enforced beside `allOf` and the like")
        keywords.setdefault("additionalProperties", value)
    types = keywords.get("type", [])
    for name in [types] if isinstance(types, str) else list_of(types, "type", path):
        if name not in TYPES:
            raise RequestError(f"{shown(path)}: `type` {name!r:.99} is none of {', '.join(sorted(TYPES))}")


def _check_nesting(schema: Any) -> None:
    level = [schema]
    for _ in range(MAX_CONTAINERS):
        values = [value.values() if isinstance(value, dict) else value for value in level if isinstance(value, _NESTS)]
        level = [inner for group in values for inner in group if isinstance(inner, _NESTS)]
        if not level:
            return
    raise RequestError(f"the schema is nested deeper than {MAX_DEPTH} levels")


def _check_draft(value: Any, path: str) -> None:
    if not isinstance(value, str) or value.rstrip("#") not in DRAFTS:
        raise RequestError(f"{shown(path)}: `$schema` {value!r:.99} is none of {', '.join(sorted(DRAFTS))}")


def _number_of(value: Any, name: str, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{shown(path)}: `{name}` must be a number, not {kind(value)}")
    is_lower, is_upper = name.endswith("inimum"), name.endswith("aximum")
    if (is_lower and value > MAX_NUMBER) or (is_upper and value < -MAX_NUMBER):
        raise RequestError(f"{shown(path)}: `{name}` {value:g} is beyond the largest number, {MAX_NUMBER:g}")
    return value
