"""The real model, at a temperature where it says anything: what ends by itself has the form that was asked for."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.acceptance.conftest import LiveServer, StartServer

MESSAGES: Any = [{"role": "user", "content": "Describe a cat as JSON."}]


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    name: Annotated[str, Field(max_length=20)]
    age: Annotated[int, Field(ge=0, le=30)]
    weight: float | None


class Owner(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    pets: Annotated[list[Pet], Field(min_length=1, max_length=2)]


SHORT = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, Any] = {
    "pydantic": Owner.model_json_schema(),
    "numbers": {"type": "object", "properties": {k: {"type": "number"} for k in "abc"}, "required": ["a", "b", "c"],
                "additionalProperties": False},
    "integers": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    "enum": {"enum": ["small", "größer", None, 3]},
    "dates": {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 1, "maxItems": 2},
    "uuid": {"type": "string", "format": "uuid"},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    "union": {"anyOf": [{"type": "integer"}, {"type": "boolean"}, SHORT]},
    "tuple": {"type": "array", "prefixItems": [SHORT, {"type": "integer"}], "items": False, "minItems": 2},
    "optional": {"type": "object", "properties": {"a": SHORT, "b": {"type": "null"}}, "additionalProperties": False},
    "map": {"type": "object", "patternProperties": {"^[a-z]{1,4}$": {"type": "integer"}}, "maxProperties": 2,
            "additionalProperties": False},
    "recursive": {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    },
    "all-of": {"allOf": [{"type": "object", "properties": {"a": SHORT}, "required": ["a"]},
                         {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def live(start_server: StartServer) -> LiveServer:
    return start_server("--max-model-len", "1024", "--max-num-seqs", "8")


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=300, max_retries=0) as made:
        yield made


def test_one_schema_in_both_endpoints(client: openai.OpenAI) -> None:
    check_chat(client, "enum", n=2, seed=1)
    check_completions(client, "numbers", n=2, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_validates_at_temperature_2(client: openai.OpenAI, name: str) -> None:
    ended = check_chat(client, name, n=8, seed=3) + check_completions(client, name, n=8, seed=4)
    assert ended >= 8


def test_openai_parses_pydantic_models(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(
        model="", messages=MESSAGES, response_format=Pet, temperature=2, seed=5, max_tokens=300
    )
    assert made.choices[0].finish_reason == "stop"
    assert isinstance(made.choices[0].message.parsed, Pet)


def test_other_forms_hold_at_temperature_2(client: openai.OpenAI) -> None:
    forms: list[tuple[dict[str, Any], str]] = [
        ({"regex": r"[a-f]{3}-\d{1,4}"}, r"[a-f]{3}-[0-9]{1,4}"),
        ({"choice": ["positive", "negative", "neither, really"]}, "positive|negative|neither, really"),
        (
            {"grammar": 'root ::= "SELECT " col ("," col){0,3}\ncol ::= "a" | "b" [0-9]'},
            r"SELECT (a|b\d)(,(a|b\d)){0,3}",
        ),
    ]
    for fields, pattern in forms:
        made = client.chat.completions.create(
            model="", messages=MESSAGES, temperature=2, seed=6, n=4, max_tokens=60,
            extra_body={"structured_outputs": fields},
        )  # fmt: skip
        assert all(re.fullmatch(pattern, choice.message.content or "") for choice in made.choices)


def test_a_bad_grammar_is_refused_and_leaves_nothing_behind(client: openai.OpenAI, live: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError, match="guided_regex"):
        client.completions.create(model="", prompt="x", extra_body={"guided_regex": "("})
    assert live.metric("vllm:num_requests_running") == 0


def check_chat(client: openai.OpenAI, name: str, n: int, seed: int) -> int:
    """How many of `n` answers ended by themselves; all of those validate."""
    form: Any = {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name], "strict": True}}
    made = client.chat.completions.create(
        model="", messages=MESSAGES, response_format=form, temperature=2, seed=seed, n=n, max_tokens=400
    )
    return check([(choice.finish_reason, choice.message.content or "") for choice in made.choices], SCHEMAS[name])


def check_completions(client: openai.OpenAI, name: str, n: int, seed: int) -> int:
    extra = {"structured_outputs": {"json": SCHEMAS[name]}}
    made = client.completions.create(
        model="", prompt="JSON: ", temperature=2, seed=seed, n=n, max_tokens=400, extra_body=extra
    )
    return check([(choice.finish_reason, choice.text) for choice in made.choices], SCHEMAS[name])


def check(answers: list[tuple[str, str]], schema: Any) -> int:
    texts = [text for reason, text in answers if reason == "stop"]
    for text in texts:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    return len(texts)
