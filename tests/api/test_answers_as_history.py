"""Whatever this server answers, on any route, whole, streamed or cut off anywhere, it takes back as history."""

import json
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import CALL, CALL_TIME, THINKING, TOOLS, saying

CHAT, RESPONSES, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"
QUESTION = {"role": "user", "content": "Go on."}
MISTRAL_LIKE = """\
{% for message in messages %}{% if message.tool_calls %}{% for call in message.tool_calls %}
{%- for name, value in call.function.arguments.items() %}{{ call.function.name + name }}{{ value }}{% endfor %}
{%- endfor %}{% endif %}[{{ message.role }}]{{ message.content + '' }}{% endfor %}"""
"""A template that breaks on arguments that are no object and on content that is no text."""
TEXTS = [
    "Hello, é👍 there.",
    f"Let me see.\n{CALL}\n{CALL_TIME}",
    f"<think>\nHm, I'll look.\n</think>\n\n{CALL}",
    "<think>Only a thought",
    f"{CALL_TIME}{CALL_TIME}",
    '<tool_call>{"name": "get_weather", "arguments": {"city": "a \\"b\\" \\\\", "days": [1, {"x": null}]}}</tool_call>',
    '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
    "",
]
RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
ANTHROPIC_TOOLS = [
    {
        "name": tool["function"]["name"],
        "input_schema": tool["function"].get("parameters", {"type": "object", "properties": {}}),
    }
    for tool in TOOLS
]


@pytest.fixture(scope="module", params=["knows tools", "reads arguments as objects", "knows no tools"])
def live(request: pytest.FixtureRequest, make_server: StartServer) -> Iterator[LiveServer]:
    templates = {
        "knows tools": {"chat_template": THINKING},
        "reads arguments as objects": {"chat_template": MISTRAL_LIKE},
    }
    fields: dict[str, Any] = {"reasoning_parser": "qwen3", "tool_call_parser": "hermes"}
    server = make_server("--quote-token", "0", max_model_len=8192, **(fields | templates.get(request.param, {})))
    yield server
    server.stop()


def post(server: LiveServer, path: str, body: dict[str, Any]) -> Any:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, (response.text, body)
    return response


def limits() -> Iterator[tuple[str, int]]:
    """Texts of the model, and after how many tokens they are cut."""
    rng = random.Random(7)
    for text in TEXTS:
        length = len(text.encode()) + 1
        yield text, length
        yield from ((text, limit) for limit in sorted(rng.sample(range(1, length), min(2, length - 1))))


def chat_answers(server: LiveServer, text: str, limit: int) -> Iterator[list[Any]]:
    body = {"messages": saying(text), "tools": TOOLS, "max_tokens": limit}
    yield [post(server, CHAT, body).json()["choices"][0]["message"]]
    with server.openai.chat.completions.stream(model="tiny", **body) as events:
        events.until_done()
        yield [events.current_completion_snapshot.choices[0].message.to_dict()]


def responses_answers(server: LiveServer, text: str, limit: int) -> Iterator[list[Any]]:
    body = {"input": saying(text), "tools": RESPONSES_TOOLS, "max_output_tokens": limit}
    yield post(server, RESPONSES, body).json()["output"]
    last = post(server, RESPONSES, {**body, "stream": True}).text.strip().split("\n\n")[-1]
    yield json.loads(last.partition("data: ")[2])["response"]["output"]


def messages_answers(server: LiveServer, text: str, limit: int) -> Iterator[list[Any]]:
    body: dict[str, Any] = {"messages": saying(text), "tools": ANTHROPIC_TOOLS, "max_tokens": limit}
    yield [{"role": "assistant", "content": post(server, MESSAGES, body).json()["content"]}]
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    with client.messages.stream(model="tiny", **body) as events:
        yield [{"role": "assistant", "content": [block.to_dict() for block in events.get_final_message().content]}]


def ollama_answers(server: LiveServer, text: str, limit: int) -> Iterator[list[Any]]:
    body = {"messages": saying(text), "tools": TOOLS, "options": {"num_predict": limit}}
    yield [post(server, OLLAMA, {**body, "stream": False}).json()["message"]]
    yield [json.loads(line)["message"] for line in post(server, OLLAMA, body).text.splitlines()]


@pytest.mark.parametrize(
    "streams",
    [chat_answers, responses_answers, messages_answers, ollama_answers],
    ids=["chat", "responses", "messages", "ollama"],
)
def test_an_answer_is_history_of_its_own_route(live: LiveServer, streams: Any) -> None:
    for text, limit in limits():
        for answer in streams(live, text, limit):
            path, body = _next_request(streams, [QUESTION, *answer])
            post(live, path, body)


def _next_request(streams: Any, history: list[Any]) -> tuple[str, dict[str, Any]]:
    """The request of a client that answers the calls of the last turn, and goes on."""
    if streams is chat_answers:
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "done"}
            for call in history[-1].get("tool_calls") or ()
        ]
        return CHAT, {"messages": [*history, *results, QUESTION], "tools": TOOLS, "max_tokens": 1}
    if streams is responses_answers:
        calls = [item for item in history if item.get("type") == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "done"} for call in calls]
        return RESPONSES, {
            "input": [*history, *outputs, QUESTION],
            "tools": RESPONSES_TOOLS,
            "max_output_tokens": 1,
        }
    if streams is messages_answers:
        calls = [block for block in history[-1]["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "done"} for call in calls]
        after = [*results, {"type": "text", "text": "Go on."}]
        return MESSAGES, {
            "messages": [*history, {"role": "user", "content": after}],
            "tools": ANTHROPIC_TOOLS,
            "max_tokens": 1,
        }
    calls = [call for message in history for call in message.get("tool_calls") or ()]
    results = [{"role": "tool", "tool_name": call["function"]["name"], "content": "done"} for call in calls]
    return OLLAMA, {"messages": [*history, *results, QUESTION], "tools": TOOLS, "options": {"num_predict": 1}}


def test_what_a_limit_leaves_of_a_call_reaches_the_template(live: LiveServer) -> None:
    arguments = '{"city": "Bon'
    said = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": arguments}
    body = {"input": [QUESTION, said, QUESTION], "max_output_tokens": 1}
    assert post(live, RESPONSES, body).json()["status"] == "incomplete"
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    for message in ({"content": None}, {"content": "x"}):
        turn = {"role": "assistant", **message, "tool_calls": [call]}
        chat = {"messages": [QUESTION, turn, QUESTION], "max_tokens": 1, "return_prompt_text": True}
        assert "Bon" in post(live, CHAT, chat).json()["prompt_text"]
        assert post(live, OLLAMA, {"messages": [QUESTION, turn, QUESTION], "options": {"num_predict": 1}})
    use = {"type": "tool_use", "id": "t", "name": "get_weather", "input": arguments}
    messages = [QUESTION, {"role": "assistant", "content": [use]}, QUESTION]
    assert post(live, MESSAGES, {"messages": messages, "max_tokens": 1})
