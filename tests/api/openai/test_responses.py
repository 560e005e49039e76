"""/v1/responses in front of an engine that repeats the prompt, read by the official client."""

import json
import re
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseTextDeltaEvent

from jserve.api.generation.recent_items import RecentItems
from jserve.api.openai.responses_api.shapes import ReasoningText
from tests.api.live_server import LiveServer

Event = dict[str, Any]


def respond(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = server.http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(server: LiveServer, body: dict[str, Any]) -> list[Event]:
    """The events of a stream, whose framing is checked."""
    response = server.http.post("/v1/responses", json={"stream": True, **body})
    assert response.status_code == 200, response.text
    events = []
    for frame in response.text.split("\n\n")[:-1]:
        name, data = re.fullmatch(r"event: (\S+)\ndata: (.+)", frame).groups()  # type: ignore[union-attr]
        events.append(json.loads(data))
        assert events[-1]["type"] == name
    return events


def refusal(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = server.http.post("/v1/responses", json={"input": "hi", **body})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same request have in common."""
    output = [{name: value for name, value in item.items() if name != "id"} for item in response["output"]]
    changing = ("id", "created_at", "completed_at", "output")
    return {**{name: value for name, value in response.items() if name not in changing}, "output": output}


def test_openai_client_reads_the_response(server: LiveServer) -> None:
    done = server.openai.responses.create(
        model="tiny", input="hi there", instructions="sys", metadata={"k": "v"}, top_p=0.5, user="me", store=True
    )
    assert done.output_text == "system\nsys"
    Response.model_validate(done.to_dict(), strict=False)
    assert (done.object, done.status, done.model, done.error) == ("response", "completed", "tiny", None)
    assert re.fullmatch(r"resp_\w+", done.id)
    [message] = done.output
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")
    assert message.id.startswith("msg_")
    [part] = message.content
    assert part.type == "output_text"
    assert part.annotations == []
    assert (done.instructions, done.metadata, done.temperature, done.top_p) == ("sys", {"k": "v"}, 0.0, 0.5)
    assert (done.tools, done.tool_choice, done.parallel_tool_calls, done.truncation) == ([], "auto", True, "disabled")
    assert done.to_dict()["store"] is True


def test_usage_counts_input_output_and_cached_tokens(server: LiveServer) -> None:
    usage = respond(server, {"input": "hi"})["usage"]
    chat = server.chat("hi")["usage"]
    assert usage["input_tokens"] == chat["prompt_tokens"]
    assert usage["output_tokens"] == chat["completion_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 3
    assert usage["output_tokens_details"]["reasoning_tokens"] == 0


def test_events_come_in_openais_order(server: LiveServer) -> None:
    events = stream(server, {"input": "hi"})
    types = [event["type"] for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "user\nhi"
    assert len(deltas) > 3
    assert types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    item_id = events[2]["item"]["id"]
    assert all(event["item_id"] == item_id for event in events[3:-2])
    assert {(event["output_index"], event["content_index"]) for event in events[3:-2]} == {(0, 0)}
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == events[2]["item"]["content"] == []
    assert events[-2]["item"] == events[-1]["response"]["output"][0]
    assert events[-4]["text"] == events[-3]["part"]["text"] == "user\nhi"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_output_tokens": 5},
        {"temperature": 0.7, "seed": 3, "max_output_tokens": 40},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ],
)
def test_the_streams_response_is_the_one_that_is_not_streamed(server: LiveServer, fields: dict[str, Any]) -> None:
    body = {"input": "hello world", **fields}
    last = stream(server, body)[-1]
    assert without_ids(last["response"]) == without_ids(respond(server, body))


def test_openai_client_streams_and_accumulates(server: LiveServer) -> None:
    with server.openai.responses.stream(model="tiny", input="hi there") as events:
        text = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
        final = events.get_final_response()
    assert final.output_text == text == "user\nhi there"


def test_cut_response_is_incomplete(server: LiveServer) -> None:
    events = stream(server, {"input": "hello", "max_output_tokens": 4})
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["completed_at"] is None


def test_failure_in_a_stream_is_an_error_and_a_failed_response(make_server: Any) -> None:
    live = make_server("--error-token", "2")
    try:
        events = stream(live, {"input": "hi"})
    finally:
        live.stop()
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["message"] == events[-1]["response"]["error"]["message"]
    assert "torn" in events[-2]["message"]
    assert events[-1]["response"]["status"] == "failed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_logprobs_are_those_of_the_text(server: LiveServer) -> None:
    body = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = stream(server, body)
    [part] = events[-1]["response"]["output"][0]["content"]
    tokens = "".join(entry["token"] for entry in part["logprobs"])
    assert tokens.removeprefix("<|im_start|>").replace("Ċ", "\n") == part["text"] == "user\nhi"
    assert [entry["logprob"] for entry in part["logprobs"][1]["top_logprobs"]] == [-1.0, -2.0]
    sent = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert sent == part["logprobs"]
    plain = respond(server, {"input": "hi"})
    assert plain["output"][0]["content"][0]["logprobs"] == []


def prompt_of(server: LiveServer, body: dict[str, Any]) -> str:
    """The prompt: the engine repeats it, special tokens and all."""
    count = respond(server, {**body, "max_output_tokens": 1})["usage"]["input_tokens"]
    fields = {"max_output_tokens": count, "ignore_eos": True, "skip_special_tokens": False}
    text: str = respond(server, {**body, **fields})["output"][0]["content"][0]["text"]
    return text


def test_items_become_messages(server: LiveServer) -> None:
    prompt = prompt_of(
        server,
        {
            "instructions": "Be.",
            "input": [
                {"role": "developer", "content": "Now."},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "c", "annotations": []}],
                },
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "d"}]},
                {"type": "message", "role": "user", "content": "e"},
            ],
        },
    )
    expected = [("system", "Be.\n\nNow."), ("user", "a\nb"), ("assistant", "c"), ("assistant", "d"), ("user", "e")]
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in expected)
    assert prompt == f"{turns}<|im_start|>assistant\n"


def test_oldest_turns_are_dropped_where_truncation_is_auto(server: LiveServer) -> None:
    turns = [
        {"role": role, "content": f"{name}{number} " * 6}
        for number in range(6)
        for role, name in (("user", "u"), ("assistant", "a"))
    ]
    body = {"instructions": "Be.", "input": [*turns, {"role": "user", "content": "last"}]}
    error = refusal(server, body)
    assert "maximum context length is 256" in error["message"]
    kept = respond(server, {**body, "truncation": "auto", "max_output_tokens": 1})
    assert kept["truncation"] == "auto"
    smaller = {"instructions": "Be.", "input": body["input"][6:]}  # type: ignore[index]
    larger = {"instructions": "Be.", "input": body["input"][4:]}  # type: ignore[index]
    count = respond(server, {**smaller, "max_output_tokens": 1})["usage"]["input_tokens"]
    assert kept["usage"]["input_tokens"] == count
    assert "maximum context length" in refusal(server, larger)["message"]
    assert "maximum context length" in refusal(server, {"input": "x" * 300, "truncation": "auto"})["message"]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "Send the whole conversation"),
        ({"background": True, "store": False}, "background", "cannot be combined with `store: false`"),
        ({"background": True, "stream": True}, "background", "cannot be combined with `stream`"),
        ({"conversation": {"id": "c"}}, "conversation", "keeps no conversations"),
        ({"prompt": {"id": "p"}}, "prompt", "keeps no prompt templates"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "'web_search'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "name must be a string"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "tools[0].name is 'a b'"),
        ({"tools": [{"type": "function", "name": "f", "parameters": "x"}]}, "tools[0].parameters", "dictionary"),
        ({"tool_choice": "required"}, "tool_choice", "`tools` must be set"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
        ({"include": ["everything"]}, "include", "'everything'"),
        ({"text": {"verbosity": "none"}}, "body.text.verbosity", "'low'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "needs the schema"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream=True"),
        ({"max_output_tokens": 0}, "max_output_tokens", "parameter=max_output_tokens"),
        ({"max_output_tokens": 2, "min_tokens": 5}, "min_tokens", "less than or equal to max_output_tokens=2"),
        (
            {"text": {"format": {"type": "json_object"}}, "guided_regex": "stop"},
            "guided_regex",
            "text.format and guided_regex were given together",
        ),
        ({"max_tokens": 5}, "max_tokens", "not of the Responses API"),
        ({"messages": []}, "messages", "not of the Responses API"),
        ({"n": 2}, "n", "one answer"),
        ({"seed": "x"}, "seed", "seed"),
        ({"top_logprobs": 21}, "top_logprobs", "21"),
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "has forgotten"),
        ({"input": [{"type": "computer_call"}]}, "input", "no item with text"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]", "'tool'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "'input_image'"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "must be a"),
        ({"metadata": {"k": "v" * 513}}, "body.metadata.k", "512"),
    ],
)
def test_refused_fields_are_named_as_the_client_wrote_them(
    server: LiveServer, fields: dict[str, Any], param: str, says: str
) -> None:
    error = refusal(server, fields)
    assert error["param"] == param
    assert says in error["message"]


def test_fields_that_change_nothing_are_accepted(server: LiveServer) -> None:
    fields = {
        "store": False,
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "max_tool_calls": 3,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "background": False,
        "something_new": {"a": 1},
    }
    answer = respond(server, {"input": "hi", **fields})
    assert answer["output"][0]["content"][0]["text"] == "user\nhi"
    assert answer["reasoning"] == {"effort": None, "summary": "auto"}
    assert answer["service_tier"] == "default"


def test_a_model_that_is_absent_is_told(server: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError, match="absent"):
        server.openai.responses.create(model="absent", input="x")


def test_an_item_of_an_answer_can_be_referred_to(server: LiveServer) -> None:
    """As the AI SDK does by default, streamed or not."""
    question = {"role": "user", "content": "hi"}
    whole = respond(server, {"input": [question]})
    last = server.http.post("/v1/responses", json={"input": [question], "stream": True}).text.strip().split("\n\n")[-1]
    streamed = json.loads(last.partition("data: ")[2])["response"]
    count = respond(server, {"input": [question, *whole["output"], question]})["usage"]["input_tokens"]
    for answer in (whole, streamed):
        references = [{"type": "item_reference", "id": item["id"]} for item in answer["output"]]
        body = {"input": [question, *references, question]}
        assert respond(server, body)["usage"]["input_tokens"] == count
        assert server.http.post("/v1/responses/input_tokens", json=body).json()["input_tokens"] == count
    unkept = respond(server, {"input": [question], "store": False})["output"][0]["id"]
    error = refusal(server, {"input": [{"type": "item_reference", "id": unkept}]})
    assert "store: false" in error["message"]


def test_items_are_kept_for_their_caller_alone_and_the_oldest_are_forgotten() -> None:
    recent = RecentItems(max_bytes=100)
    for number in range(10):
        recent.add(b"a", f"msg_{number}", ReasoningText("x" * 10))
    assert recent.find(b"a", "msg_0") is None
    assert recent.find(b"a", "msg_9") == {"type": "reasoning_text", "text": "x" * 10}
    assert recent.find(b"b", "msg_9") is None


def test_input_tokens_are_counted(server: LiveServer) -> None:
    counted = server.openai.responses.input_tokens.count(model="tiny", input="hi", instructions="sys")
    used = server.openai.responses.create(model="tiny", input="hi", instructions="sys").usage
    assert used is not None
    assert counted.input_tokens == used.input_tokens


def test_failure_before_the_first_token_comes_after_the_announcement(make_server: Any) -> None:
    live = make_server("--error-token", "1")
    try:
        events = stream(live, {"input": "hi"})
    finally:
        live.stop()
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "error",
        "response.failed",
    ]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_text_follows_its_format(server: LiveServer) -> None:
    fields = {"input": "hi", "temperature": 1, "seed": 5}
    wanted = {"type": "json_schema", "name": "one", "schema": SCHEMA, "strict": True}
    answer = respond(server, {**fields, "text": {"format": wanted}})
    made = json.loads(answer["output"][0]["content"][0]["text"])
    assert made.keys() == {"a"}
    assert 0 <= made["a"] <= 9
    assert answer["text"]["format"] == wanted
    whatever = respond(server, {**fields, "text": {"format": {"type": "json_object"}}})
    assert isinstance(json.loads(whatever["output"][0]["content"][0]["text"]), dict)


def test_schema_that_is_none_is_refused_as_text_format(server: LiveServer) -> None:
    wanted = {"type": "json_schema", "name": "one", "schema": {"type": "nonsense"}}
    error = refusal(server, {"text": {"format": wanted}})
    assert error["param"].startswith("text.format")
    assert "response_format" not in error["message"]
