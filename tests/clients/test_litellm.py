"""LiteLLM in front of jserve, as gateways use it: OpenAI, vLLM, Anthropic and Ollama routes."""

from typing import Any

import pytest

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

pytest.importorskip("litellm", reason="needs the `clients` extra")

import litellm

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def route(live: LiveServer, provider: str) -> dict[str, Any]:
    base = live.url if provider in ("anthropic", "ollama_chat") else f"{live.url}/v1"
    return {"model": f"{provider}/{NAME}", "api_base": base, "api_key": "none", "max_tokens": 40, "temperature": 0}


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic", "ollama_chat"])
def test_every_route_answers_whole_and_streamed(live: LiveServer, provider: str) -> None:
    whole = litellm.completion(messages=QUESTION, **route(live, provider))
    assert "Paris" in whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    parts = litellm.completion(messages=QUESTION, stream=True, **route(live, provider))
    assert "Paris" in "".join(part.choices[0].delta.content or "" for part in parts)


def test_an_error_becomes_the_right_exception(live: LiveServer) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=QUESTION, **(route(live, "openai") | {"temperature": 9.0}))
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        litellm.completion(messages=QUESTION, **(route(live, "openai") | {"model": "openai/nobody"}))


def test_schema_tools_and_embeddings(live: LiveServer) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    made = litellm.completion(messages=QUESTION, response_format=form, **route(live, "hosted_vllm"))
    assert made.choices[0].message.content.startswith("{")
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
    named = {"type": "function", "function": {"name": "look_up"}}
    made = litellm.completion(messages=QUESTION, tools=tools, tool_choice=named, **route(live, "hosted_vllm"))
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    embedded = litellm.embedding(f"openai/{NAME}", ["one", "two"], api_base=f"{live.url}/v1", api_key="none")
    assert len(embedded.data) == 2
