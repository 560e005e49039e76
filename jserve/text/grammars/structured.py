"""What a request asks of the form of its output, in one value, and the grammar that says the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jserve.errors import RequestError
from jserve.text.grammars.grammar import (
    choice_rule,
    json_object_rule,
    json_rule,
    regex_rule,
    user_grammar,
    whole_grammar,
)
from jserve.text.grammars.structural_tag import structural_tag_grammar

Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """The form of an output.

    `value` is a JSON schema, or its JSON as text (json), nothing (json_object), a regular expression (regex), a
    list of texts (choice), Lark or GBNF (grammar), or a structural tag, or its JSON as text (structural_tag).
    `field` is the path of the field that asks for it. The two options matter to JSON alone.
    """

    kind: Kind
    value: Any = None
    field: str = "structured_outputs"
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None


def grammar_of(spec: StructuredOutput) -> str:
    """The grammar, in llguidance's words. Raises RequestError, without `param`, that says what is wrong with it."""
    whitespace: dict[str, Any] = {
        "any_whitespace": not spec.disable_any_whitespace,
        "whitespace_pattern": spec.whitespace_pattern,
    }
    match spec.kind:
        case "json_object":
            return whole_grammar(json_object_rule(**whitespace))
        case "json":
            return whole_grammar(json_rule(_parsed(spec.value), **whitespace))
        case "regex":
            return whole_grammar(regex_rule(spec.value))
        case "choice":
            return whole_grammar(choice_rule(spec.value))
        case "grammar":
            return user_grammar(spec.value)
        case "structural_tag":
            tag = _parsed(spec.value)
            if not isinstance(tag, Mapping):
                raise RequestError("a structural tag must be an object")
            return structural_tag_grammar(tag, any_whitespace=not spec.disable_any_whitespace)


def _parsed(value: Any) -> Any:
    """The value, out of its JSON where it is text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the text is not JSON: {error}") from None
