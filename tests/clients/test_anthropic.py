"""The official anthropic client on /v1/messages, with the real model, and requests as Claude Code makes them."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel, Field

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

pytestmark = pytest.mark.slow

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0}
"""The client has no parameter for it."""
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as made:
        yield made


def test_stream_accumulates_to_the_message(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {
        "model": NAME,
        "max_tokens": 60,
        "extra_body": GREEDY,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Name three colours."}],
    }
    whole = client.messages.create(**fields)
    with client.messages.stream(**fields) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert whole.content[0].type == "text"
    assert whole.content[0].text == text
    assert final.content[0].to_dict() == whole.content[0].to_dict()
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_prompt_is_counted_as_it_is_used(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": NAME, "messages": QUESTION, "system": "Be brief.", "tools": [WEATHER]}
    counted = client.messages.count_tokens(**fields).input_tokens
    usage = client.messages.create(max_tokens=1, **fields).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted
    assert counted > client.messages.count_tokens(**{**fields, "tools": []}).input_tokens


def test_prefill_is_continued(client: anthropic.Anthropic) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "Count from one to five."},
        {"role": "assistant", "content": "One, two, three,"},
    ]
    message = client.messages.create(model=NAME, max_tokens=5, extra_body=GREEDY, messages=messages)
    assert message.content[0].type == "text"
    assert message.content[0].text.startswith(" four")


# A model of 135M parameters that may call several times does not stop.
@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}]
)
def test_tool_is_used_and_its_result_read(client: anthropic.Anthropic, choice: Any) -> None:
    fields: dict[str, Any] = {"model": NAME, "max_tokens": 100, "extra_body": GREEDY, "tools": [WEATHER]}
    whole = client.messages.create(messages=QUESTION, tool_choice=choice, **fields)
    with client.messages.stream(messages=QUESTION, tool_choice=choice, **fields) as events:
        streamed = events.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    use, same = whole.content[-1], streamed.content[-1]
    assert use.type == same.type == "tool_use"
    assert use.id.startswith("toolu_")
    assert (use.name, use.input) == (same.name, same.input)
    assert use.input.keys() == {"city"}  # type: ignore[attr-defined]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 25 degrees"}
    history = [*QUESTION, whole.to_param(), {"role": "user", "content": [result, {"type": "text", "text": "So?"}]}]
    answer = client.messages.create(messages=history, tool_choice={"type": "none"}, **fields)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.content[0].type == "text"


def test_parse_returns_an_object(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(
        model=NAME,
        max_tokens=100,
        extra_body=GREEDY,
        messages=[{"role": "user", "content": "Jason is 25 years old. Extract the person."}],
        output_format=Person,
    )
    assert isinstance(message.parsed_output, Person)


def test_a_turn_of_claude_code(client: anthropic.Anthropic) -> None:
    """Blocks with cache_control, many tools, thinking, metadata, betas, a result followed by a text, a stream."""
    cached = {"cache_control": {"type": "ephemeral"}}
    tools: list[Any] = [{**WEATHER, "name": f"tool_{number}"} for number in range(15)]
    tools[-1] |= cached
    with client.beta.messages.stream(
        model=NAME,
        max_tokens=60,
        betas=["claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"],
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=1a2b3;"},
            {"type": "text", "text": "You are Claude Code.", **cached},  # type: ignore[typeddict-item]
            {"type": "text", "text": "Be concise.", **cached},  # type: ignore[typeddict-item]
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>\nx\n</system-reminder>"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I need the weather.", "signature": ""},
                    {"type": "text", "text": "I look it up."},
                    {"type": "tool_use", "id": "toolu_1", "name": "tool_1", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", **cached},  # type: ignore[typeddict-item]
                    {"type": "text", "text": "Go on."},
                ],
            },
        ],
        tools=tools,
        metadata={"user_id": '{"device_id": "0"}'},
        thinking={"type": "adaptive"},
        extra_body={
            "temperature": 1,
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        },
    ) as events:
        message = events.get_final_message()
    assert message.stop_reason in ("end_turn", "max_tokens", "tool_use")
    assert message.content
    assert message.usage.output_tokens > 0
