"""Pydantic AI with its default settings: a tool is called and answered, on chat and on /v1/responses."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import HERMES

pytestmark = pytest.mark.slow
pydantic_ai = pytest.importorskip("pydantic_ai")


@pytest.fixture(scope="module")
def server(make_server: StartServer, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """What it is to say stands between two signs that are no special token: the client breaks those up."""
    live = make_server("--quote-token", str(tokenizer.token_to_id("~")), chat_template=HERMES, max_model_len=8192)
    yield live
    live.stop()


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_a_tool_is_called_and_answered(server: LiveServer, kind: str) -> None:
    from pydantic_ai.models import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    model = getattr(openai, kind)("tiny", provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key="none"))
    agent: Any = pydantic_ai.Agent(model)

    @agent.tool_plain(strict=False)  # Under a grammar the engine here draws, and does not say what it is told to.
    def read(name: str) -> str:
        return f"~{name} is read.~"

    call = json.dumps({"name": "read", "arguments": {"name": "a.txt"}})
    done = agent.run_sync(f"~<tool_call>\n{call}\n</tool_call>~")
    assert done.output == "a.txt is read."
    again = agent.run_sync("~Good.~", message_history=done.all_messages())
    assert again.output == "Good."
