"""Whatever a bounded schema lets through is JSON that the schema's owner accepts."""

import json
import re
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from llguidance import LLTokenizer

from jserve.text.grammar import JSON_WHITESPACE, json_rule, whole_grammar
from tests.text.grammar_walk import Vocabulary
from tests.text.schema_corpus import SCHEMAS

LONGEST_NUMBER = 1 + 19 + 1 + 10


@pytest.fixture(scope="session")
def byte_vocabulary() -> Vocabulary:
    return Vocabulary(LLTokenizer("byte"))


def check(text: str, schema: Any) -> None:
    """`text` is JSON, satisfies `schema`, and everything in it that nobody wants endless is short."""
    value = json.loads(text, parse_float=Decimal)  # 0.07 is a multiple of 0.01 in decimals only
    schema = json.loads(json.dumps(modern(schema)), parse_float=Decimal)
    jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(value)
    outside = re.sub(r'"(\\.|[^"\\])*"', '""', text)
    assert max(map(len, re.findall(r"[-+.eE0-9]+", outside)), default=0) <= LONGEST_NUMBER
    assert all(re.fullmatch(JSON_WHITESPACE, blank) for blank in re.findall(r"\s+", outside))


def modern(schema: Any) -> Any:
    """The draft-4 words of the corpus as today's."""
    if isinstance(schema, dict) and schema.get("exclusiveMinimum") is True:
        return {**schema, "exclusiveMinimum": schema["minimum"]}
    return schema


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_end_parse_and_validate(name: str, byte_vocabulary: Vocabulary) -> None:
    schema = SCHEMAS[name]
    grammar = whole_grammar(json_rule(schema))
    for seed in range(6):
        walk = byte_vocabulary.walk(grammar, seed)
        assert walk.is_finished, walk.text
        check(walk.text, {"type": "object"} if schema == {} else schema)
