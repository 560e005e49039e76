"""The words of JSON schema: which of them a grammar enforces, which only describe, and which are refused.

Words that no draft knows are annotations, as the specification says (2020-12, core, section 6.5), and so are the
words that only describe (`title`, `default`, `$comment`, ...): neither is listed here.
"""

import re
from typing import Any

from jserve.text.grammars.schema_values import is_well_formed

APPLICATORS = frozenset({"allOf", "anyOf", "oneOf"})

ENFORCED = frozenset(
    {
        "$ref", "additionalItems", "additionalProperties", "const", "enum", "exclusiveMaximum", "exclusiveMinimum",
        "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
        "minProperties", "minimum", "multipleOf", "pattern", "patternProperties", "prefixItems", "properties",
        "required", "type", "unevaluatedProperties", *APPLICATORS,
    }
)  # fmt: skip

REFUSED: dict[str, str] = dict.fromkeys(
    (
        "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "disallow",
        "divisibleBy", "else", "extends", "if", "maxContains", "minContains", "not", "propertyNames", "then",
        "unevaluatedItems", "uniqueItems",
    ),
    "cannot be enforced while text is generated; leave it out and check the answer instead",
)  # fmt: skip
"""What a left-to-right grammar cannot hold a model to, and what to do instead."""
REFUSED |= {
    "dependentRequired": "cannot be enforced while text is generated; use `anyOf` with `required`",
    "if": "cannot be enforced while text is generated; use `anyOf`",
    "propertyNames": "cannot be enforced while text is generated; use `patternProperties`",
    "uniqueItems": "cannot be enforced while text is generated; leave it out and remove repetitions from the answer",
}

ENFORCED_FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
)
STANDARD_FORMATS = ENFORCED_FORMATS | {
    "idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer",
    "uri-reference", "uri-template",
}  # fmt: skip
"""Those that validators check. Any other (`password`, `int32`, `binary`) describes, and restricts nothing."""

DRAFTS = frozenset(
    {
        "http://json-schema.org/draft-04/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    }
)


def is_harmless(name: str, value: Any) -> bool:
    """Whether a refused keyword has a value that restricts nothing."""
    if name == "uniqueItems":
        return value is False
    if name == "propertyNames":  # Names are strings; zod's records say so.
        return value is True or (isinstance(value, dict) and value.get("type") == "string" and _only_describes(value))
    if name in ("dependencies", "dependentRequired", "dependentSchemas"):
        return bool(value == {})
    return name == "unevaluatedItems" and value is True


_SHAPELESS = frozenset(
    {
        "exclusiveMaximum", "exclusiveMinimum", "format", "maxItems", "maxLength", "maxProperties", "maximum",
        "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern", "patternProperties",
    }
)  # fmt: skip
"""What limits texts, numbers and counts."""
_UNSUPPORTED_REGEX = re.compile(r"\(\?<?[=!]|\\[1-9bB]|\(\?P=")
"""Look-around, references to groups, and ends of words."""


def is_droppable(name: str, value: Any, *, shape: bool) -> bool:
    """Whether a keyword narrows what a schema allows and cannot be enforced, or means nothing with this value; with
    `shape`, or is of `_SHAPELESS`.
    """
    if name in REFUSED or (shape and name in _SHAPELESS) or not is_well_formed(name, value):
        return True
    if name == "$schema":
        return not (isinstance(value, str) and value.rstrip("#") in DRAFTS)
    if name == "$ref":
        return isinstance(value, str) and not (value == "#" or value.startswith("#/"))
    if name == "format":
        return value in STANDARD_FORMATS - ENFORCED_FORMATS
    if name == "minProperties":
        return isinstance(value, int | float) and value > 1
    if name == "pattern":
        return isinstance(value, str) and _UNSUPPORTED_REGEX.search(value) is not None
    return name == "patternProperties" and isinstance(value, dict) and any(map(_UNSUPPORTED_REGEX.search, value))


def _only_describes(schema: dict[str, Any]) -> bool:
    return not (ENFORCED | REFUSED.keys()) & (schema.keys() - {"type"})
