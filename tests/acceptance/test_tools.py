"""The real model, whose chat template knows no tools, calls tools through the OpenAI client."""

import json
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from tests.acceptance.conftest import LiveServer, StartServer

pytestmark = pytest.mark.slow

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "get_time", "description": "The time of day."}},
]
SCHEMAS = {"get_weather": PARAMETERS, "get_time": {"type": "object", "additionalProperties": False}}
BY_NAME: Any = {"type": "function", "function": {"name": "get_weather"}}
QUESTION: list[Any] = [{"role": "user", "content": "How is the weather in Paris, in celsius?"}]


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> LiveServer:
    return start_server()


def client_of(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)


def check(calls: Any) -> list[str]:
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in calls]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["required", BY_NAME])
def test_forced_calls_follow_their_schemas_at_a_high_temperature(server: LiveServer, seed: int, choice: Any) -> None:
    client = client_of(server)
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, tools=TOOLS, tool_choice=choice, temperature=1.5, seed=seed, max_tokens=1500
    ).choices[0]
    names = check(answer.message.tool_calls)
    assert names
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert choice == "required" or names == ["get_weather"]


def test_a_call_its_result_and_an_answer(server: LiveServer) -> None:
    client = client_of(server)
    request: dict[str, Any] = {"model": client.models.list().data[0].id, "tools": TOOLS, "temperature": 0.0}
    with client.chat.completions.stream(messages=QUESTION, tool_choice=BY_NAME, **request) as events:
        called = events.get_final_completion().choices[0].message
    [call] = called.tool_calls or []
    assert "Paris" in json.loads(call.function.arguments)["city"]
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is 21 degrees and sunny."}
    history = [*QUESTION, called.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(messages=history, tool_choice="none", max_tokens=60, **request).choices[0]
    assert answer.message.content
    assert "21" in answer.message.content
    assert not answer.message.tool_calls
