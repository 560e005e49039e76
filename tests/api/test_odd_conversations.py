"""Items, blocks and tools whose parts are of the wrong type: a 400, whatever they are."""

from typing import Any

import pytest

from tests.api.live_server import LiveServer

MESSAGES = [{"role": "user", "content": "hi"}]
CALL = {"type": "tool_use", "id": "1", "name": "f"}
ODD_INPUTS = {
    "content of a type that is no text": [{"role": "user", "content": [{"type": ["input_text"], "text": "x"}]}],
    "a type that is no text": [{"type": {}, "role": "user", "content": "x"}],
    "a role that is no text": [{"role": ["user"], "content": "x"}],
    "content that is a number": [{"role": "user", "content": 10**30}],
    "a call without arguments": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": None}],
    "reasoning of numbers": [{"type": "reasoning", "content": [1]}],
    "reasoning that is a number": [{"type": "reasoning", "content": 1}],
    "100,000 items": MESSAGES * 100_000,
}
ODD_BLOCKS = {
    "a type that is no text": {"content": [{"type": ["text"], "text": "x"}]},
    "a text that is a number": {"content": [{"type": "text", "text": 1}]},
    "a call of a number": {"role": "assistant", "content": [{"type": "tool_use", "id": 1, "name": "f"}]},
    "input that is a list": {"role": "assistant", "content": [{**CALL, "input": [1]}]},
    "a result that is a number": {"content": [{"type": "tool_result", "tool_use_id": "1", "content": 1}]},
    "a result of numbers": {"content": [{"type": "tool_result", "tool_use_id": "1", "content": [1]}]},
}  # fmt: skip
ODD_CALLS = {
    "calls that are an object": {"id": "1"},
    "calls that are a number": 1,
    "a call that is a text": ["f"],
    "a call that is null": [None],
    "a function that is null": [{"id": "1", "type": "function", "function": None}],
    "a function that is a text": [{"id": "1", "type": "function", "function": "f"}],
    "a function without a name": [{"id": "1", "type": "function", "function": {"arguments": "{}"}}],
    "a name that is a list": [{"id": "1", "type": "function", "function": {"name": ["f"], "arguments": "{}"}}],
    "a custom tool without a name": [{"id": "1", "type": "custom", "custom": {"input": "x"}}],
}
ODD_TOOLS = [{"type": ["function"]}, {"type": "function", "name": ["f"]}, {"name": {}, "input_schema": {}}]


@pytest.mark.parametrize("name", ODD_INPUTS)
def test_an_odd_input_of_a_response_is_refused(server: LiveServer, name: str) -> None:
    response = server.http.post("/v1/responses", json={"input": ODD_INPUTS[name]})
    assert response.status_code == 400
    assert len(response.json()["error"]["message"]) < 5_000


@pytest.mark.parametrize("name", ODD_BLOCKS)
def test_an_odd_block_of_a_message_is_refused(server: LiveServer, name: str) -> None:
    body = {"max_tokens": 5, "messages": [{"role": "user", **ODD_BLOCKS[name]}]}
    assert server.http.post("/v1/messages", json=body).status_code == 400
    assert server.http.post("/v1/messages/count_tokens", json=body).status_code == 400


@pytest.mark.parametrize("name", ODD_CALLS)
def test_an_odd_call_in_the_history_of_a_chat_is_refused(server: LiveServer, name: str) -> None:
    """Whether the template shows calls or they are written as text."""
    messages = [*MESSAGES, {"role": "assistant", "content": "x", "tool_calls": ODD_CALLS[name]}]
    response = server.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert response.status_code == 400, response.text
    assert "messages[1].tool_calls" in response.json()["error"]["message"]


@pytest.mark.parametrize("tool", ODD_TOOLS)
def test_odd_tools_are_refused(server: LiveServer, tool: dict[str, Any]) -> None:
    assert server.http.post("/v1/responses", json={"input": "x", "tools": [tool]}).status_code == 400
    body = {"max_tokens": 5, "messages": MESSAGES, "tools": [tool]}
    response = server.http.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_numbers_of_any_size_come_back_in_a_response(server: LiveServer) -> None:
    body = {"input": "x", "text": {"format": {"type": "text", "huge": 10**40}}, "max_output_tokens": 1}
    response = server.http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["text"]["format"]["huge"] == 10**40
    call = {**CALL, "input": {"huge": 10**40}}
    messages = [{"role": "assistant", "content": [call]}, *MESSAGES]
    assert server.http.post("/v1/messages", json={"messages": messages, "max_tokens": 1}).status_code == 200
