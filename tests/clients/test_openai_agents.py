"""openai-agents: an agent with a function, through the Responses API and through chat, with the real model."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

agents = pytest.importorskip("agents", reason="needs the `clients` extra")
pytestmark = pytest.mark.slow

MODELS = [agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel]


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def make_model(request: pytest.FixtureRequest) -> Any:
    agents.set_tracing_disabled(True)
    made: Any = request.param
    return made


@asynccontextmanager
async def agent_of(live: LiveServer, make_model: Any, **fields: Any) -> AsyncIterator[Any]:
    """An agent whose connections end with it."""
    settings = agents.ModelSettings(temperature=0, max_tokens=80, tool_choice=fields.pop("tool_choice", None))
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        model = make_model(model=NAME, openai_client=client)
        yield agents.Agent("Assistant", instructions="Be brief.", model=model, model_settings=settings, **fields)


def run(live: LiveServer, make_model: Any, question: str, **fields: Any) -> Any:
    """What an agent makes of a question."""

    async def go() -> Any:
        async with agent_of(live, make_model, **fields) as agent:
            return await agents.Runner.run(agent, question, max_turns=5)

    return asyncio.run(go())


def test_agent_answers(live: LiveServer, make_model: Any) -> None:
    result = run(live, make_model, "Name three colours.")
    assert result.final_output
    usage = result.raw_responses[0].usage
    assert usage.input_tokens > 0
    assert 0 < usage.output_tokens <= 80


def test_agent_calls_its_function(live: LiveServer, make_model: Any) -> None:
    fields = {"tools": [get_weather], "tool_choice": "get_weather", "tool_use_behavior": "stop_on_first_tool"}
    result = run(live, make_model, "What is the weather in Paris?", **fields)
    [call] = [item.raw_item for item in result.new_items if isinstance(item, agents.ToolCallItem)]
    assert call.name == "get_weather"  # type: ignore[union-attr]
    city = json.loads(call.arguments)["city"]  # type: ignore[union-attr]
    assert result.final_output == f"It is sunny in {city}."


def test_agent_goes_on_after_the_result(live: LiveServer, make_model: Any) -> None:
    """The agent itself forces the call in the first turn only."""
    result = run(live, make_model, "What is the weather in Paris?", tools=[get_weather], tool_choice="required")
    assert any(isinstance(item, agents.ToolCallOutputItem) for item in result.new_items)
    assert len(result.raw_responses) >= 2
    assert result.final_output


def test_agent_streams(live: LiveServer, make_model: Any) -> None:
    async def go() -> tuple[str, str]:
        async with agent_of(live, make_model) as agent:
            result = agents.Runner.run_streamed(agent, "Name three colours.")
            deltas = [
                event.data.delta
                async for event in result.stream_events()
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
            ]
            return "".join(deltas), result.final_output

    streamed, final = asyncio.run(go())
    assert streamed == final
    assert final
