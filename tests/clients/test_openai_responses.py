"""The official openai client on /v1/responses, with the real model."""

import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel, Field

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

pytestmark = pytest.mark.slow

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_response_says_what_chat_says(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name three colours."},
        ],
        temperature=0,
        max_tokens=40,
    )
    done = client.responses.create(
        model=NAME, instructions="Be brief.", input="Name three colours.", temperature=0, max_output_tokens=40
    )
    assert done.output_text == chat.choices[0].message.content
    assert done.usage is not None
    assert chat.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0.9, "extra_body": {"seed": 7}}])
def test_stream_ends_with_the_response(client: openai.OpenAI, fields: dict[str, object]) -> None:
    question = {"model": NAME, "input": "What is the capital of France?", "max_output_tokens": 200, **fields}
    with client.responses.stream(**question) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    assert text == final.output_text == client.responses.create(**question).output_text


def test_answer_is_part_of_the_next_input(client: openai.OpenAI) -> None:
    first = client.responses.create(model=NAME, input="Say hello.", temperature=0, max_output_tokens=30)
    history = [{"role": "user", "content": "Say hello."}, *first.output, {"role": "user", "content": "Again."}]
    second = client.responses.create(model=NAME, input=history, temperature=0, max_output_tokens=30)  # type: ignore[arg-type]
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.output_text


def test_parse_returns_an_object(client: openai.OpenAI) -> None:
    done = client.responses.parse(
        model=NAME,
        input="Jason is 25 years old. Extract the person.",
        text_format=Person,
        temperature=0,
        max_output_tokens=100,
    )
    assert isinstance(done.output_parsed, Person)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_function_is_called_and_answered(client: openai.OpenAI, choice: object) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    # A model of 135M parameters that may call several times does not stop.
    fields = {
        "model": NAME,
        "tools": [WEATHER],
        "temperature": 0,
        "max_output_tokens": 100,
        "parallel_tool_calls": False,
    }
    with client.responses.stream(input=[question], tool_choice=choice, **fields) as events:  # type: ignore[call-overload]
        seen = list(events)
        final = events.get_final_response()
    call = final.output[-1]
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert json.loads(call.arguments).keys() == {"city"}
    sent = [event.delta for event in seen if event.type == "response.function_call_arguments.delta"]
    assert "".join(sent) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 25 degrees"}
    history = [question, *(item.to_dict() for item in final.output), result]
    answer = client.responses.create(input=history, tool_choice="none", **fields)  # type: ignore[call-overload]
    assert answer.output_text
