"""Whatever a bounded schema lets through is JSON that the schema's owner accepts."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from jserve.errors import RequestError
from jserve.text.grammars.grammar import JSON_WHITESPACE, json_rule, whole_grammar
from jserve.text.grammars.json_schema import bound_schema
from jserve.text.grammars.schema_keywords import REFUSED
from jserve.text.load import load_tokenizer
from tests.text.grammars.grammar_walk import Vocabulary
from tests.text.grammars.schema_corpus import SCHEMAS

LONGEST_NUMBER = 1 + 19 + 1 + 10


@pytest.fixture(scope="session")
def byte_vocabulary() -> Vocabulary:
    return Vocabulary(LLTokenizer("byte"))


@pytest.fixture(scope="session")
def real_vocabulary(real_gguf: Path) -> Vocabulary:
    made = load_tokenizer(str(real_gguf))
    assert made.eos_token_id is not None
    return Vocabulary(LLTokenizer(made.backend.to_str(), n_vocab=made.num_ids, eos_token=[made.eos_token_id]))


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


def counts(least: str, most: str) -> st.SearchStrategy[dict[str, int]]:
    """Neither bound, either, or both in order."""
    pair = st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda p: {least: p[0], most: p[0] + p[1]})
    return st.one_of(st.just({}), pair, pair.map(lambda p: {most: p[most]}))


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    low = st.one_of(st.integers(-1000, 1000), st.sampled_from([-2.5, 0.125, 3.75]))
    bounds = low.flatmap(
        lambda a: st.fixed_dictionaries(
            {}, optional={"minimum": st.just(a), "maximum": st.integers(3, 90).map(a.__add__)}
        )
    )
    exclusive = st.builds(dict, exclusiveMinimum=st.integers(-9, 9), exclusiveMaximum=st.integers(11, 99))
    return st.builds(
        lambda kind, bound: {"type": kind, **bound}, st.sampled_from(["integer", "number"]), bounds | exclusive
    )


WRITABLE = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])
"""Characters that the real tokenizer has all bytes of; it lacks those of unassigned planes."""
CONSTANTS = st.none() | st.booleans() | st.integers(-99, 99) | st.text(WRITABLE, max_size=4)
KEYS = st.sampled_from(["a", "b", "naïve", "with space", 'q"', "back\\slash", "日本"])
LEAVES = st.one_of(
    numbers(),
    st.sampled_from(["boolean", "null", "string"]).map(lambda kind: {"type": kind}),
    counts("minLength", "maxLength").map(lambda bounds: {"type": "string", **bounds}),
    st.sampled_from(["^a+b?$", "[0-9]{2}", "x|y"]).map(lambda p: {"type": "string", "pattern": p, "maxLength": 9}),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.just({"type": ["integer", "null"]}),
)  # fmt: skip


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    members = st.dictionaries(KEYS, inner, max_size=3)
    more = st.one_of(
        st.just({}), st.just({"additionalProperties": False}), inner.map(lambda s: {"additionalProperties": s})
    )
    return st.tuples(members, more, st.integers(0, 3)).map(
        lambda parts: {"type": "object", "properties": parts[0], "required": list(parts[0])[: parts[2]], **parts[1]}
    )


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    plain = st.tuples(inner, counts("minItems", "maxItems")).map(lambda p: {"type": "array", "items": p[0], **p[1]})
    prefix = st.lists(inner, min_size=1, max_size=2).map(lambda p: {"type": "array", "prefixItems": p, "items": False})
    return plain | prefix


TREES = st.recursive(
    LEAVES,
    lambda inner: objects(inner) | arrays(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
    max_leaves=6,
)
WITH_REFERENCES = st.tuples(objects(TREES), LEAVES).map(
    lambda p: {
        "$defs": {"leaf": p[1], "node": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}, {"$ref": "#"}]}},
        **p[0],
        "properties": {**p[0]["properties"], "node": {"$ref": "#/$defs/node"}},
        "required": [*p[0]["required"], "node"],
    }
)
COMBINED = st.tuples(objects(LEAVES), objects(LEAVES)).map(
    lambda p: (
        {"allOf": [p[0], {"properties": {f"{k}2": v for k, v in p[1]["properties"].items()}}]}
        if "additionalProperties" not in p[0]
        else p[0]
    )
)


@settings(max_examples=120)
@given(schema=TREES | WITH_REFERENCES | COMBINED, seed=st.integers(0, 2**32))
def test_walks_through_any_schema_end_parse_and_validate(schema: Any, seed: int, byte_vocabulary: Vocabulary) -> None:
    walk = byte_vocabulary.walk(whole_grammar(json_rule(schema)), seed)
    assert walk.is_finished, walk.text
    check(walk.text, schema)


@pytest.mark.slow
@settings(max_examples=2000)
@given(schema=TREES | WITH_REFERENCES | COMBINED, seed=st.integers(0, 2**32))
def test_walks_with_a_real_tokenizer_end_parse_and_validate(
    schema: Any, seed: int, real_vocabulary: Vocabulary
) -> None:
    walk = real_vocabulary.walk(whole_grammar(json_rule(schema)), seed)
    assert walk.is_finished, walk.text
    check(walk.text, schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_real_tokenizer_walks_the_corpus(name: str, real_vocabulary: Vocabulary) -> None:
    schema = SCHEMAS[name]
    for seed in range(2):
        walk = real_vocabulary.walk(whole_grammar(json_rule(schema)), seed)
        assert walk.is_finished, walk.text
        check(walk.text, {"type": "object"} if schema == {} else schema)


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_keywords_that_cannot_be_enforced_are_refused_by_name_and_place(keyword: str) -> None:
    value = {"uniqueItems": True, "propertyNames": {"pattern": "^a"}, "unevaluatedItems": False}.get(
        keyword, {"a": ["b"]}
    )
    with pytest.raises(RequestError, match=re.escape(f"$.properties.x.items: `{keyword}` cannot be enforced")):
        bound_schema({"properties": {"x": {"items": {keyword: value}}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": False},
        {"propertyNames": {"type": "string"}},
        {"dependentRequired": {}},
        {"x-made-up": {"not": 1}, "deprecated": True, "example": 1},
        {"properties": {"not": {"type": "null"}, "$ref": {"type": "null"}}},
        {"enum": [{"not": 1, "$ref": "x"}]},
        {"unevaluatedItems": True},
    ],
)
def test_words_that_restrict_nothing_are_accepted(schema: Any) -> None:
    bound_schema(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "other.json#/a"}, "must point into the schema itself"),
        ({"$ref": "#anchor"}, "anchor"),
        ({"$ref": "#/$defs/none"}, "which the schema does not have"),
        ({"$ref": 3}, "must point into the schema itself"),
        ({"type": "strnig"}, "none of array"),
        ({"minimum": "3"}, "must be a number, not a string"),
        ({"minimum": 1e30}, "beyond the largest number"),
        ({"minLength": -1}, "whole number"),
        ({"required": "a"}, "must be an array"),
        ({"required": [1]}, "must hold strings"),
        ({"properties": []}, "must be an object"),
        ({"properties": {"a": 1}}, "$.properties.a: a schema must be"),
        ({"anyOf": {}}, "must be an array"),
        ({"format": "idn-email"}, "`format` 'idn-email' cannot be enforced"),
        ({"minProperties": 2}, "`minProperties` above 1"),
        ({"allOf": [{}, {"type": "object"}], "unevaluatedProperties": False}, "`unevaluatedProperties`"),
        ({"$schema": "http://example.com/mine"}, "`$schema`"),
        ({"properties": {"a": {"$id": "http://example.com/a"}}}, "`$id` below the root"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite value"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite value"),
        ({"anyOf": [{"$ref": "#"}]}, "no finite value"),
        (False, "no value satisfies"),
        ([], "must be an object or a boolean"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_schema_is_said(schema: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        bound_schema(schema)


def test_a_schema_of_64_levels_passes_and_a_deeper_one_does_not() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"type": "array", "items": nested(levels - 1)} if levels else {"type": "null"}

    bound_schema(nested(64))
    with pytest.raises(RequestError, match="nested deeper than 64 levels"):
        bound_schema(nested(65))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["9" + "0" * 18, "-9" + "0" * 18], ["1" * 20, "1e5"]),
        ({"type": "number"}, ["0.1234567891", "-12.5"], ["0.12345678912", "1" * 20, "1e5"]),
        ({}, ['{"a":[[{"b":1}]]}'], ['{"a":' + "1" * 20, '{"a":' + "[" * 13, "1"]),
        ({"type": "array", "items": {"type": "null"}}, ["[null,\n" + " " * 40 + "null]"], ["[" + " " * 9, "[\n\n"]),
    ],
)
def test_numbers_whitespace_and_free_nesting_have_an_end(schema: Any, good: list[str], bad: list[str]) -> None:
    def fitting(text: str) -> int:
        return LLMatcher(LLTokenizer("byte"), whole_grammar(json_rule(schema)), log_level=0).validate_tokens(
            [*text.encode()]
        )

    assert all(fitting(text) == len(text) for text in good)
    assert all(fitting(text) < len(text) for text in bad)
