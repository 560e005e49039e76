"""Calls that must come, and must follow a schema: the fake engine writes anything that the grammar allows."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import HERMES, THINKING, TIME, TOOLS, WEATHER

CHAT = "/v1/chat/completions"
SCHEMAS = {
    "get_weather": WEATHER["function"]["parameters"],
    "get_time": {"type": "object", "additionalProperties": False},
}
BY_NAME = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def server(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=4096)
    yield live
    live.stop()


def ask(server: LiveServer, seed: int, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "seed": seed, "temperature": 1.5, **fields}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def check(choice: dict[str, Any]) -> list[str]:
    """The names of the calls, all of which follow their schemas."""
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    for function in functions:
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
    return [function["name"] for function in functions]


@pytest.mark.parametrize("seed", range(6))
def test_a_required_call_comes_and_follows_its_schema(server: LiveServer, seed: int) -> None:
    choice = ask(server, seed, tool_choice="required")
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert check(choice)


@pytest.mark.parametrize("seed", range(3))
def test_the_named_call_comes_and_ends_with_stop(server: LiveServer, seed: int) -> None:
    choice = ask(server, seed, tool_choice=BY_NAME)
    assert choice["finish_reason"] == "stop"
    assert check(choice) == ["get_weather"]


def test_a_forced_call_is_streamed_alike(server: LiveServer) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "seed": 3, "temperature": 1.5}
    [message] = [ask(server, 3, tool_choice="required")["message"]]
    streamed = ["" for _ in message["tool_calls"]]
    for chunk in server.events(CHAT, messages=[{"role": "user", "content": "x"}], **fields):
        for call in chunk["choices"][0]["delta"].get("tool_calls", []):
            streamed[call["index"]] += call["function"]["arguments"]
    assert streamed == [call["function"]["arguments"] for call in message["tool_calls"]]


def test_required_without_parallel_calls_is_one(server: LiveServer) -> None:
    for seed in range(4):
        assert len(check(ask(server, seed, tool_choice="required", parallel_tool_calls=False))) == 1


def test_only_a_strict_tool_needs_a_schema_that_can_be_enforced(server: LiveServer) -> None:
    function: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": 5}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    loose = server.http.post(CHAT, json={**body, "tools": [{"type": "function", "function": function}]})
    assert loose.status_code == 200
    strict = {"type": "function", "function": {**function, "strict": True}}
    refused = server.http.post(CHAT, json={**body, "tools": [strict]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"


def test_the_form_of_an_answer_and_tools_go_together(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    kinds = set()
    for seed in range(12):
        choice = ask(server, seed, response_format=wanted, parallel_tool_calls=False)
        if "tool_calls" in choice["message"]:
            kinds.add("calls")
            check(choice)
        else:
            kinds.add("answer")
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    assert kinds == {"calls", "answer"}


def test_openai_client_forces_a_call(server: LiveServer) -> None:
    done = server.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        tools=TOOLS,
        tool_choice=BY_NAME,  # type: ignore[arg-type]
        seed=1,
        temperature=1.0,
    )
    [call] = done.choices[0].message.tool_calls or []
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS["get_weather"])  # type: ignore[union-attr]


def test_a_schema_that_cannot_be_enforced_is_refused(server: LiveServer) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": 5}, "strict": True}
    tool = {"type": "function", "function": function}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": "required"}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    remote = {"name": TIME["function"]["name"], "parameters": {"$ref": "http://x/y"}, "strict": True}
    response = server.http.post(CHAT, json={**body, "tools": [{"type": "function", "function": remote}]})
    assert response.status_code == 400


MEANINGLESS: list[dict[str, Any]] = [
    {"type": "any"},
    {"type": "string", "required": True},
    {"type": "integer", "minimum": "0"},
    {"enum": "a, b"},
    {"type": "object", "properties": {"x": "string"}},
    {"type": "array", "items": "string"},
    {"$schema": "draft 3", "type": "string"},
]
"""Schemas of a parameter that are none, as older drafts, MCP servers and hands write them."""


@pytest.mark.parametrize("schema", MEANINGLESS, ids=str)
def test_what_means_nothing_in_a_tool_that_is_not_strict_is_dropped(server: LiveServer, schema: dict[str, Any]) -> None:
    """As with `auto`, which takes any of these."""
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}, "odd": schema}, "required": ["n", "odd"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    fields: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    [call] = ask(server, 3, tools=[tool], **fields)["message"]["tool_calls"]
    made = json.loads(call["function"]["arguments"])
    assert made.keys() == {"n", "odd"}
    assert isinstance(made["n"], int)


def test_a_schema_that_makes_no_sense_as_a_whole_leaves_an_object(server: LiveServer) -> None:
    for odd in ({"$ref": "#/definitions/missing"}, {"$ref": "#/properties/odd"}):
        function = {"name": "f", "parameters": {"type": ["object", "null"], "properties": {"odd": odd}}}
        tool = {"type": "function", "function": function}
        choice = ask(server, 3, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=400)
        [call] = choice["message"]["tool_calls"]
        assert isinstance(json.loads(call["function"]["arguments"]), dict)


NARROWING: list[dict[str, Any]] = [
    {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    {"type": "string", "not": {}},
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "string", "pattern": r"\bword\b"},
    {"type": "string", "pattern": "(a){"},
    {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 5}, "else": {"maximum": 3}},
    {"type": "array", "contains": {"const": 1}, "minContains": 2},
    {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 1}]},
    {"type": "object", "propertyNames": {"pattern": "^a"}, "minProperties": 2},
    {"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}}, "additionalProperties": False},
    {"type": "string", "format": "uri-reference"},
    {"$ref": "https://example.com/schema.json"},
    {"$dynamicRef": "#node"},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}], "unevaluatedProperties": False},
]
"""Schemas of a parameter that hold something which no grammar enforces, and which narrows what they allow."""


@pytest.mark.parametrize("schema", NARROWING, ids=str)
def test_a_tool_that_is_not_strict_is_held_to_what_can_be_enforced(server: LiveServer, schema: dict[str, Any]) -> None:
    rest = {"kind": {"enum": ["one", "two"]}, "count": {"type": "integer"}}
    parameters = {
        "type": "object",
        "properties": {**rest, "odd": schema},
        "required": [*rest, "odd"],
        "additionalProperties": False,
    }
    function = {"name": "f", "parameters": parameters}
    tool = {"type": "function", "function": function}
    fields: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    choice = ask(server, 3, tools=[tool], **fields)
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    made = json.loads(call["function"]["arguments"])
    jsonschema.validate(made, {**parameters, "properties": {**rest, "odd": True}})
    if kind := schema.get("type"):
        jsonschema.validate(made["odd"], {"type": kind})
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    strict = {"type": "function", "function": {**function, "strict": True}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": parameters}}
    for refused in ({**body, "tools": [strict]}, {"messages": body["messages"], "response_format": form}):
        response = server.http.post(CHAT, json=refused)
        assert response.status_code == 400, response.text
        message = response.json()["error"]["message"]
        assert not any(inner in message for inner in ("%json", "x-guidance", " | ", "arguments_0", "at 5("))


def test_a_thinking_model_may_think_first(start_server: StartServer) -> None:
    live = start_server("--quote-token", "0", chat_template=THINKING, max_model_len=4096)
    fields: dict[str, Any] = {"tool_choice": "required", "chat_template_kwargs": {"enable_thinking": False}}
    assert check(ask(live, 1, **fields))


CHANNELS = (
    "{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}<|channel|>commentary{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def test_a_form_of_output_is_that_of_the_last_channel(start_server: StartServer) -> None:
    """As gpt-oss answers: what comes before is free, and the field itself is named where it is wrong."""
    server = start_server("--quote-token", "0", chat_template=CHANNELS, max_model_len=4096)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    answered = 0
    for seed in range(10):
        choice = ask(server, seed, tools=None, response_format=form, max_tokens=120)
        if choice["finish_reason"] == "stop":
            answered += 1
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        else:  # Analysis has no end where nobody thinks.
            assert not choice["message"]["content"]
            assert choice["message"]["reasoning"]
    assert answered
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": wrong}
    refused = server.http.post(CHAT, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"
