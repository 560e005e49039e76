"""/v1/messages in front of an engine that repeats the prompt, read by the official client."""

import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from tests.api.live_server import LiveServer
from tests.patience import PATIENCE_S

HI = [{"role": "user", "content": "hi there"}]
Event = dict[str, Any]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def answer(server: LiveServer, **body: Any) -> dict[str, Any]:
    response = server.http.post("/v1/messages", json={"messages": HI, "max_tokens": 50, **body})
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()
    return message


def stream(server: LiveServer, **body: Any) -> list[Event]:
    """The events of a stream, whose framing is checked."""
    response = server.http.post("/v1/messages", json={"messages": HI, "max_tokens": 50, "stream": True, **body})
    assert response.status_code == 200, response.text
    events = []
    for frame in response.text.split("\n\n")[:-1]:
        name, data = re.fullmatch(r"event: (\S+)\ndata: (.+)", frame).groups()  # type: ignore[union-attr]
        events.append(json.loads(data))
        assert events[-1]["type"] == name
    return events


def prompt_of(server: LiveServer, **body: Any) -> str:
    """The prompt: the engine repeats it, special tokens and all."""
    counted = server.http.post("/v1/messages/count_tokens", json={"messages": HI, **body})
    fields = {"max_tokens": counted.json()["input_tokens"], "ignore_eos": True, "skip_special_tokens": False}
    text: str = answer(server, **{**body, **fields})["content"][0]["text"]
    return text


def turns(*expected: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in expected)


def test_anthropic_client_reads_the_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=50, messages=HI, system="sys")  # type: ignore[arg-type]
    Message.model_validate(message.to_dict())
    assert re.fullmatch(r"msg_\w+", message.id)
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    [block] = message.content
    assert block.type == "text"
    assert block.text == "system\nsys"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)


def test_input_tokens_add_up_to_what_is_counted(client: anthropic.Anthropic, server: LiveServer) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": HI, "system": [{"type": "text", "text": "sys"}]}
    usage = client.messages.create(max_tokens=9, **body).usage
    counted = client.messages.count_tokens(**body).input_tokens
    assert usage.cache_read_input_tokens == 3
    assert usage.cache_creation_input_tokens == 0
    assert usage.input_tokens + 3 == counted
    assert usage.output_tokens == 9
    whole_body = {**body, "max_tokens": 9, "stream": True, "temperature": 0.5, "stop_sequences": ["x"]}
    assert server.http.post("/v1/messages/count_tokens", json=whole_body).json() == {"input_tokens": counted}


def test_anthropic_client_streams_and_accumulates(client: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": "tiny", "max_tokens": 50, "messages": HI}
    with client.messages.stream(**fields) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    whole = client.messages.create(**fields)
    assert text == "user\nhi there"
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.to_dict() == whole.usage.to_dict()


def test_events_come_in_anthropics_order(server: LiveServer) -> None:
    events = stream(server)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == "user\nhi there"
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(deltas) + 2  # Both special tokens.


def test_reasons_to_stop(server: LiveServer) -> None:
    cut = answer(server, max_tokens=5)
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 5)
    stopped = answer(server, stop_sequences=["absent", "ther"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "ther")
    assert stopped["content"] == [{"type": "text", "text": "user\nhi "}]
    end = stream(server, stop_sequences=["ther"])[-2]
    assert end["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "ther"}


def test_last_message_of_the_assistant_is_continued(server: LiveServer) -> None:
    prefilled = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "The answer is"}]}]
    prompt = prompt_of(server, messages=prefilled)
    assert prompt == turns(("user", "hi there")) + "<|im_start|>assistant\nThe answer is"


def test_betas_and_unknown_fields_are_accepted(client: anthropic.Anthropic) -> None:
    message = client.beta.messages.create(
        model="tiny",
        max_tokens=50,
        messages=HI,  # type: ignore[arg-type]
        betas=["context-management-2025-06-27", "something-2030-01-01"],
        metadata={"user_id": "me"},
        service_tier="auto",
        thinking={"type": "disabled"},
        extra_body={"context_management": {"edits": []}, "something_new": [1]},
    )
    assert message.content[0].to_dict()["text"] == "user\nhi there"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id must be a string"),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}]},
            "answer each with a tool_result",
        ),
        ({"system": [{"type": "image"}]}, "system[0]"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}},
            "'web_search_20250305'",
        ),
        (
            {
                "tools": [{"type": "bash_20250124", "name": "bash"}, {"name": "f", "input_schema": {}}],
                "tool_choice": {"type": "tool", "name": "bash"},
            },
            "'bash_20250124'",
        ),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema has type 'array'"),
        ({"min_tokens": 60}, "less than or equal to max_tokens=50"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}, "guided_regex": "stop"},
            "output_config.format and guided_regex were given together",
        ),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "stop"}}}}, "'stop'"),
        ({"tool_choice": {"type": "any"}}, "`tools` must be set"),
        ({"tool_choice": {"type": "tool"}}, "needs the tool's `name`"),
        ({"tool_choice": {"type": "some"}}, "'some'"),
        ({"stop_sequences": [""]}, "stop_sequences cannot contain an empty string"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -5}, "top_k"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "greater than `thinking.budget_tokens`"),
        ({"mcp_servers": [{"type": "url"}], "tool_choice": {"type": "any"}}, "'mcp_servers'"),
        ({"container": "c"}, "container"),
        ({"max_completion_tokens": 5}, "not of the Messages API"),
    ],
)
def test_refusals_name_what_the_client_wrote(server: LiveServer, fields: dict[str, Any], says: str) -> None:
    body = {"messages": HI, "max_tokens": 50, **fields}
    response = server.http.post("/v1/messages", json={name: value for name, value in body.items() if value is not None})
    assert response.status_code == 400, response.text
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert says in error["error"]["message"]


def test_errors_raise_the_clients_exceptions(client: anthropic.Anthropic, make_server: Any) -> None:
    fields: dict[str, Any] = {"max_tokens": 5, "messages": HI}
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="absent", **fields)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="tiny", **{**fields, "max_tokens": 0})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="absent", messages=HI)  # type: ignore[arg-type]
    live = make_server("--error-token", "2", api_keys=("right",))
    try:
        guarded = anthropic.Anthropic(base_url=live.url, api_key="wrong", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            guarded.messages.create(model="tiny", **fields)
        allowed = anthropic.Anthropic(base_url=live.url, api_key="right", max_retries=0)
        fields["max_tokens"] = 50
        with pytest.raises(anthropic.InternalServerError, match="torn"):
            allowed.messages.create(model="tiny", **fields)
        with (
            pytest.raises(anthropic.APIStatusError, match="torn"),
            allowed.messages.stream(model="tiny", **fields) as events,
        ):
            events.until_done()
    finally:
        live.stop()


def test_models_are_listed_for_both_clients(client: anthropic.Anthropic, server: LiveServer) -> None:
    page = client.models.list()
    assert [model.id for model in page] == [model.id for model in server.openai.models.list()] == ["tiny", "other"]
    assert page.has_more is False
    shown = client.models.retrieve("tiny")
    assert (shown.type, shown.display_name, shown.lifecycle) == ("model", "tiny", "active")
    assert shown.max_input_tokens == 256
    assert abs(shown.created_at.timestamp() - server.openai.models.retrieve("tiny").created) < 1


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_text_follows_its_schema(server: LiveServer, field: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "schema": schema}
    fields = {field: {"format": wanted} if field == "output_config" else wanted}
    made = json.loads(answer(server, temperature=1, seed=5, **fields)["content"][0]["text"])
    assert made.keys() == {"a"}
    assert 0 <= made["a"] <= 9
