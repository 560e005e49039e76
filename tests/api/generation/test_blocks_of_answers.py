"""Reasoning and tool calls in the Responses and the Messages API. The engine says what the prompt quotes: ~TEXT~."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from tokenizers import Tokenizer

from tests.api.anthropic.test_messages import prompt_of
from tests.api.anthropic.test_messages import stream as message_events
from tests.api.live_server import LiveServer, StartServer
from tests.api.openai.test_responses import stream as response_events
from tests.api.openai.test_responses import without_ids

FIRST = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
CALLS = f'{FIRST}\n<tool_call>\n{{"name": "g", "arguments": {{}}}}\n</tool_call>'
SAID = f"~<think>\nhm, so\n</think>\n\nI look.\n{CALLS}~"  # fmt: skip
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}}
FLAT = [{"type": "function", "name": name, "parameters": SCHEMA} for name in "fg"]
ANTHROPIC: list[Any] = [{"name": name, "input_schema": SCHEMA} for name in "fg"]


@pytest.fixture(scope="module")
def speaker(make_server: StartServer, tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """A server whose model thinks between tags and calls tools in Hermes' format."""
    quote = str(tokenizer.token_to_id("~"))
    live = make_server("--quote-token", quote, tool_call_parser="hermes", reasoning_parser="qwen3", max_model_len=4096)
    yield live
    live.stop()


def respond(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.http.post("/v1/responses", json={"input": SAID, "tools": FLAT, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_response_has_an_item_per_block(speaker: LiveServer) -> None:
    answer = respond(speaker)
    reasoning, message, first, second = answer["output"]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
    assert reasoning["content"][0]["type"] == "reasoning_text"
    assert reasoning["content"][0]["text"].strip() == "hm, so"
    assert message["content"][0]["text"].strip() == "I look."
    assert [call["type"] for call in (first, second)] == ["function_call"] * 2
    assert [(call["name"], json.loads(call["arguments"])) for call in (first, second)] == [("f", {"x": 1}), ("g", {})]
    assert first["call_id"] != second["call_id"]
    ids = [item["id"] for item in answer["output"]]
    assert [item_id.partition("_")[0] for item_id in ids] == ["rs", "msg", "fc", "fc"]
    assert len(set(ids)) == 4
    assert answer["status"] == "completed"
    details = answer["usage"]["output_tokens_details"]
    assert 0 < details["reasoning_tokens"] < answer["usage"]["output_tokens"]
    assert [tool["name"] for tool in answer["tools"]] == ["f", "g"]


def without_call_ids(response: dict[str, Any]) -> dict[str, Any]:
    for item in response["output"]:
        item.pop("call_id", None)
    return without_ids(response)


def test_a_streamed_response_is_the_whole_one(speaker: LiveServer) -> None:
    events = response_events(speaker, {"input": SAID, "tools": FLAT})
    assert without_call_ids(events[-1]["response"]) == without_call_ids(respond(speaker))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    short = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
    assert short == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        *["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"] * 2,
        "completed",
    ]  # fmt: skip
    for index, item in enumerate(events[-1]["response"]["output"]):
        mine = [event for event in events if event.get("output_index") == index]
        text = "".join(event["delta"] for event in mine if "delta" in event)
        assert text == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert {event.get("item_id") or event["item"]["id"] for event in mine} == {item["id"]}


def test_openai_client_accumulates_calls(speaker: LiveServer) -> None:
    with speaker.openai.responses.stream(model="tiny", input=SAID, tools=FLAT) as events:  # type: ignore[arg-type]
        final = events.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.output_text.strip() == "I look."


def test_items_of_a_turn_become_one_message(speaker: LiveServer) -> None:
    """What comes back is counted like the same conversation in chat."""
    first = respond(speaker)["output"]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": [{"type": "input_text", "text": "12"}]}
        for item in first[2:]
    ]
    again = respond(speaker, input=[{"role": "user", "content": SAID}, *first, *results])
    calls = [
        {
            "id": item["call_id"],
            "type": "function",
            "function": {"name": item["name"], "arguments": item["arguments"]},
        }
        for item in first[2:]
    ]
    messages = [
        {"role": "user", "content": SAID},
        {
            "role": "assistant",
            "reasoning": first[0]["content"][0]["text"],
            "content": first[1]["content"][0]["text"],
            "tool_calls": calls,
        },
        *({"role": "tool", "tool_call_id": call["id"], "content": "12"} for call in calls),
    ]
    tools = [{"type": "function", "function": {"name": tool["name"], "parameters": SCHEMA}} for tool in FLAT]
    chat = speaker.http.post("/v1/chat/completions", json={"messages": messages, "tools": tools}).json()
    assert again["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_allowed_tools_are_the_only_ones(speaker: LiveServer) -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    only = [{**FLAT[0]}]
    assert (
        respond(speaker, tool_choice=choice)["usage"]["input_tokens"]
        == respond(speaker, tools=only)["usage"]["input_tokens"]
    )


def test_errors_about_tools_name_the_clients_fields(speaker: LiveServer) -> None:
    bad = [{"type": "function", "name": "f f", "parameters": SCHEMA}]
    error = speaker.http.post("/v1/responses", json={"input": "x", "tools": bad}).json()["error"]
    assert error["param"] == "tools[0].name"
    assert "tools[0].name" in error["message"]
    wrong = [{"name": "f", "input_schema": {"type": "array"}}]
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "tools": wrong}
    assert "tools[0].input_schema" in speaker.http.post("/v1/messages", json=body).json()["error"]["message"]


def message(server: LiveServer, **fields: Any) -> dict[str, Any]:
    body = {"max_tokens": 400, "messages": [{"role": "user", "content": SAID}], "tools": ANTHROPIC, **fields}
    response = server.http.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_message_has_its_blocks(speaker: LiveServer) -> None:
    answer = message(speaker)
    thinking, text, first, second = answer["content"]
    assert thinking == {"type": "thinking", "thinking": thinking["thinking"], "signature": ""}
    assert thinking["thinking"].strip() == "hm, so"
    assert text["text"].strip() == "I look."
    assert [(use["type"], use["name"], use["input"]) for use in (first, second)] == [
        ("tool_use", "f", {"x": 1}),
        ("tool_use", "g", {}),
    ]
    assert first["id"].startswith("toolu_")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)


def test_a_message_streams_its_blocks(speaker: LiveServer) -> None:
    fields = {"max_tokens": 400, "messages": [{"role": "user", "content": SAID}], "tools": ANTHROPIC}
    events = message_events(speaker, **fields)
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in starts[2:]] == [{}, {}]
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
        "input_json_delta",
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    client = anthropic.Anthropic(base_url=speaker.url, api_key="none", max_retries=0)
    with client, client.messages.stream(model="tiny", **fields) as stream:  # type: ignore[arg-type]
        final = stream.get_final_message().to_dict()
    whole = message(speaker)
    for block in (*final["content"], *whole["content"]):  # type: ignore[misc]
        block.pop("id", None)
    assert final["content"] == whole["content"]
    assert final["stop_reason"] == whole["stop_reason"]


def test_thinking_can_be_left_out_of_sight(speaker: LiveServer) -> None:
    answer = message(speaker, thinking={"type": "adaptive", "display": "omitted"})
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use", "tool_use"]


def test_one_tool_at_a_time(speaker: LiveServer) -> None:
    answer = message(speaker, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use"]
    assert [item["type"] for item in respond(speaker, parallel_tool_calls=False)["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]


def test_a_call_that_is_cut_off_is_what_was_complete(speaker: LiveServer) -> None:
    whole = message(speaker)["usage"]["output_tokens"]
    said = [{"role": "user", "content": f"~{FIRST}~"}]
    cut = message(speaker, messages=said, max_tokens=len(FIRST) - 16)
    assert cut["stop_reason"] == "max_tokens"
    assert cut["usage"]["output_tokens"] < whole
    for block in cut["content"]:
        assert block["type"] in ("text", "tool_use")


def test_results_come_back_under_the_models_own_ids(speaker: LiveServer) -> None:
    first = message(speaker)["content"]
    results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "12"} for block in first[2:]]
    history = [
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": first},
        {"role": "user", "content": results},
    ]
    again = message(speaker, messages=history)
    calls = [
        {
            "id": block["id"].removeprefix("toolu_"),
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in first[2:]
    ]
    messages = [
        {"role": "user", "content": SAID},
        {"role": "assistant", "reasoning": first[0]["thinking"], "content": first[1]["text"], "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "12"} for call in calls),
    ]
    tools = [{"type": "function", "function": {"name": tool["name"], "parameters": SCHEMA}} for tool in ANTHROPIC]
    chat = speaker.http.post("/v1/chat/completions", json={"messages": messages, "tools": tools}).json()
    usage = again["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]


def test_blocks_become_messages(speaker: LiveServer) -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"},
        {"type": "text", "text": "Be.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Do."},
    ]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "?"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "d"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "e"}],
                },
                {"type": "text", "text": "f"},
            ],
        },
    ]
    calls = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, name, arguments in (("1", "f", '{"x": 1}'), ("2", "g", "{}"))
    ]
    chat = [
        {"role": "system", "content": "Be.\n\nDo."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "reasoning": "hm", "content": "c", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: e"},
        {"role": "user", "content": "f"},
    ]
    body = {"messages": chat, "return_prompt_text": True, "max_tokens": 1}
    expected = speaker.http.post("/v1/chat/completions", json=body).json()["prompt_text"]
    assert "Error: e" in expected
    assert prompt_of(speaker, system=system, messages=messages) == expected
