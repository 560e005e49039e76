"""LangChain's OpenAI integration against the real model."""

from typing import Any

import pytest
from pydantic import BaseModel, Field

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

pytest.importorskip("langchain_openai", reason="needs the `clients` extra")

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

pytestmark = pytest.mark.slow


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    population: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city now."""
    return f"Sunny in {city}."


def chat_model(live: LiveServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{live.url}/v1", api_key="none", model=NAME, temperature=0, max_retries=0, max_tokens=60, **options
    )


def test_chat_answers_and_counts_tokens(live: LiveServer) -> None:
    messages = [SystemMessage("You are a helpful assistant."), HumanMessage("What is the capital of France?")]
    answer = chat_model(live).invoke(messages)
    assert "Paris" in answer.content
    assert answer.usage_metadata["total_tokens"] == sum(
        answer.usage_metadata[name] for name in ("input_tokens", "output_tokens")
    )
    assert answer.response_metadata["finish_reason"] == "stop"


def test_stream_adds_up_to_the_answer(live: LiveServer) -> None:
    model = chat_model(live, stream_usage=True)
    pieces = list(model.stream("What is the capital of France?"))
    assert len(pieces) > 3
    assert "".join(piece.content for piece in pieces) == model.invoke("What is the capital of France?").content
    assert any(piece.usage_metadata for piece in pieces)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_instance(live: LiveServer, method: str) -> None:
    model = chat_model(live).with_structured_output(City, method=method)
    city = model.invoke("Describe Paris: its name and its population.")
    assert isinstance(city, City)


def test_tools_are_called_and_their_results_are_read(live: LiveServer) -> None:
    model = chat_model(live).bind_tools([get_weather], tool_choice="any")
    question = HumanMessage("What is the weather in Paris?")
    call = model.invoke([question])
    assert [made["name"] for made in call.tool_calls] == ["get_weather"] * len(call.tool_calls)
    assert call.tool_calls
    results = [ToolMessage(get_weather.invoke(made["args"]), tool_call_id=made["id"]) for made in call.tool_calls]
    assert chat_model(live).invoke([question, call, *results]).content


def test_streamed_tool_call_equals_the_whole_one(live: LiveServer) -> None:
    model = chat_model(live).bind_tools([get_weather], tool_choice="get_weather")
    total = None
    for piece in model.stream("What is the weather in Paris?"):
        total = piece if total is None else total + piece
    whole = model.invoke("What is the weather in Paris?")
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]


def test_responses_api_answers(live: LiveServer) -> None:
    answer = chat_model(live, use_responses_api=True).invoke("What is the capital of France?")
    assert "Paris" in answer.text


def test_completions_and_embeddings(live: LiveServer) -> None:
    llm = OpenAI(base_url=f"{live.url}/v1", api_key="none", model=NAME, temperature=0, max_tokens=8)
    assert "Paris" in llm.invoke("The capital of France is")
    # LangChain sends token ids of OpenAI's own tokenizer unless told not to.
    embeddings = OpenAIEmbeddings(
        base_url=f"{live.url}/v1", api_key="none", model=NAME, check_embedding_ctx_length=False
    )
    first, second = embeddings.embed_documents(["A cat sat on the mat.", "Stocks fell sharply."])
    assert len(first) == len(second) == 576
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-3)
