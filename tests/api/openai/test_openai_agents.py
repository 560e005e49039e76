"""openai-agents, through the Responses API and through chat, with a model that says what the prompt quotes: ~TEXT~."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from tokenizers import Tokenizer

from tests.api.live_server import LiveServer, StartServer

agents = pytest.importorskip("agents", reason="needs the `clients` extra")
pytestmark = pytest.mark.slow

CALL = '~<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>~'


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city. What it returns is said by the model, since it is the last that is quoted."""
    return f"~It is sunny in {city}.~"


@pytest.fixture(scope="module")
def speaker(make_server: StartServer, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    agents.set_tracing_disabled(True)
    quote = str(tokenizer.token_to_id("~"))
    live = make_server("--quote-token", quote, tool_call_parser="hermes", max_model_len=4096)
    yield live
    live.stop()


@pytest.mark.parametrize(
    "make_model",
    [agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel],
    ids=lambda model: model.__name__,
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_agent_calls_its_function_and_reads_the_result(speaker: LiveServer, make_model: Any, streamed: bool) -> None:
    async def go() -> Any:
        async with AsyncOpenAI(base_url=f"{speaker.url}/v1", api_key="none", max_retries=0) as client:
            model = make_model(model="tiny", openai_client=client)
            agent = agents.Agent("Assistant", instructions="Be brief.", model=model, tools=[get_weather])
            if not streamed:
                return await agents.Runner.run(agent, CALL, max_turns=4)
            result = agents.Runner.run_streamed(agent, CALL, max_turns=4)
            async for _ in result.stream_events():
                pass
            return result

    result = asyncio.run(go())
    [call] = [item.raw_item for item in result.new_items if isinstance(item, agents.ToolCallItem)]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert result.final_output == "It is sunny in Paris."
    assert len(result.raw_responses) == 2
