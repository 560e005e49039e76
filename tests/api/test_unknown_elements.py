"""Tools, items and blocks of types that this server does not have: one of them does not refuse the whole request."""

import logging
from typing import Any

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import HERMES, WEATHER, saying

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
QUESTION = {"role": "user", "content": "Go on."}
F = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
CUSTOM = {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}}
NAMESPACE = {"type": "namespace", "name": "mcp__maps", "description": "", "tools": [{**F, "name": "find"}, CUSTOM]}
OTHER_TOOLS: list[dict[str, Any]] = [
    {"type": "web_search", "external_web_access": False},
    {"type": "local_shell"},
    {"type": "file_search", "vector_store_ids": ["v"]},
    {"type": "mcp", "server_label": "m", "server_url": "https://example.com"},
    {"type": "image_generation"},
    {"type": "something_of_next_year"},
    CUSTOM,
]
SERVER_TOOLS = [
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "something_20300101", "name": "something"},
]


@pytest.fixture(scope="module")
def live(make_server: StartServer) -> Any:
    server = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=4096)
    yield server
    server.stop()


def prompt_of(server: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]) -> str:
    """The text that the model is given for a request, which must be answered."""
    seen: list[str] = []
    model = server.server.context.model_when_ready()
    encode = type(model).encode

    async def noted(self: Any, text: str, **options: Any) -> list[int]:
        seen.append(text)
        return await encode(self, text, **options)

    monkeypatch.setattr(type(model), "encode", noted)
    response = server.http.post(path, json={"max_tokens": 4, **body} if path == MESSAGES else body)
    assert response.status_code == 200, response.text
    return seen[-1]


def call(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'


@pytest.mark.parametrize("tool", OTHER_TOOLS, ids=lambda tool: tool["type"])
def test_a_tool_that_this_server_does_not_have_is_left_out(
    live: LiveServer, tool: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "jserve"):
        alone = live.http.post(RESPONSES, json={"input": saying("Hi"), "tools": [tool]})
        beside = live.http.post(RESPONSES, json={"input": saying(call("get_weather")), "tools": [tool, F]})
    lines = [record.message for record in caplog.records if "left out" in record.message]
    assert len(lines) == 2
    assert tool["type"] in lines[0]
    assert alone.json()["output"][0]["content"][0]["text"] == "Hi"
    assert alone.json()["tools"][0]["type"] == tool["type"]
    assert beside.json()["output"][0]["name"] == "get_weather"
    chat = live.http.post(CHAT, json={"messages": saying("Hi"), "tools": [tool, WEATHER]})
    assert chat.status_code == 200, chat.text
    assert live.http.post("/tokenize", json={"messages": saying("Hi"), "tools": [tool, WEATHER]}).status_code == 200
    ollama = {"messages": saying("Hi"), "tools": [tool, WEATHER], "stream": False}
    assert live.http.post("/api/chat", json=ollama).json()["message"]["content"] == "Hi"


@pytest.mark.parametrize("choice", ["required", {"type": "web_search"}, {"type": "custom", "name": "apply_patch"}])
def test_a_choice_that_needs_such_a_tool_is_refused(live: LiveServer, choice: Any) -> None:
    response = live.http.post(RESPONSES, json={"input": "x", "tools": OTHER_TOOLS, "tool_choice": choice})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    assert "does not have" in response.json()["error"]["message"]


def test_allowed_tools_are_those_of_them_that_are_there(live: LiveServer) -> None:
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}, {**F}]}
    body = {"input": saying(call("get_weather")), "tools": [*OTHER_TOOLS, F], "tool_choice": allowed}
    assert live.http.post(RESPONSES, json=body).json()["output"][0]["type"] == "function_call"
    body["tool_choice"] = {**allowed, "tools": [{"type": "web_search"}]}
    assert live.http.post(RESPONSES, json=body).json()["output"][0]["type"] == "message"


def test_functions_of_a_namespace_are_called_and_said_to_be_of_it(live: LiveServer) -> None:
    body = {"input": saying(call("find")), "tools": [NAMESPACE, F]}
    [item] = live.http.post(RESPONSES, json=body).json()["output"]
    assert (item["namespace"], item["name"]) == ("mcp__maps", "find")
    [item] = live.http.post(RESPONSES, json={**body, "input": saying(call("get_weather"))}).json()["output"]
    assert "namespace" not in item
    done = live.http.post(RESPONSES, json={**body, "stream": True}).text.split("\n\n")[-2]
    assert '"namespace":"mcp__maps"' in done
    named = {"type": "function", "name": "find"}
    assert live.http.post(RESPONSES, json={**body, "tool_choice": named}).json()["output"][0]["name"] == "find"


def test_functions_of_one_name_are_told_apart_by_their_namespace(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = [NAMESPACE, {**F, "name": "find"}]
    said = {"type": "function_call", "call_id": "c", "namespace": "mcp__maps", "name": "find", "arguments": "{}"}
    history = [QUESTION, said, {"type": "function_call_output", "call_id": "c", "output": "found"}]
    body = {"input": [*history, *saying(call("mcp__maps__find"))], "tools": tools}
    assert '{"name": "mcp__maps__find", "arguments": {}}' in prompt_of(live, monkeypatch, RESPONSES, body)
    [item] = live.http.post(RESPONSES, json=body).json()["output"]
    assert (item["namespace"], item["name"]) == ("mcp__maps", "find")
    [item] = live.http.post(RESPONSES, json={**body, "input": saying(call("find"))}).json()["output"]
    assert "namespace" not in item


SHELL = {"type": "exec", "command": ["ls"], "env": {}}
HISTORY: list[tuple[list[dict[str, Any]], list[str], list[str]]] = [
    (
        [
            {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "patched"},
        ],
        ['{"name": "apply_patch", "arguments": {"input": "*** Begin"}}', "tool\npatched"],
        [],
    ),
    (
        [
            {"type": "local_shell_call", "id": "l", "call_id": "s", "status": "completed", "action": SHELL},
            {"type": "local_shell_call_output", "id": "s", "output": "README.md"},
        ],
        ['"local_shell"', '"command": ["ls"]', "tool\nREADME.md"],
        [],
    ),
    (
        [
            {"type": "shell_call", "call_id": "s", "action": {"commands": ["ls"]}},
            {"type": "shell_call_output", "call_id": "s", "output": [{"stdout": "README.md", "stderr": "none"}]},
        ],
        ['"commands": ["ls"]', "tool\nREADME.md\nnone"],
        [],
    ),
    ([{"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "SECRET"}}], [], ["SECRET"]),
    (
        [{"type": "mcp_call", "id": "m", "name": "find", "arguments": '{"q": 1}', "output": "a place"}],
        ['{"name": "find", "arguments": {"q": 1}}', "tool\na place"],
        [],
    ),
    (
        [{"type": "file_search_call", "id": "f", "queries": ["q"], "results": [{"text": "a page"}]}],
        ['{"queries": ["q"]}', "tool\na page"],
        [],
    ),
    ([{"type": "compaction", "encrypted_content": "SECRET"}, {"type": "mcp_list_tools", "tools": []}], [], ["SECRET"]),
    ([{"type": "something_new", "content": [{"type": "some_text", "text": "a thing"}]}], ["assistant\na thing"], []),
    (
        [{"role": "assistant", "content": [{"type": "output_audio"}, {"type": "output_text", "text": "said"}]}],
        ["assistant\nsaid"],
        [],
    ),
    (
        [
            {"type": "function_call", "call_id": "c", "name": "view", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": "SECRET"}],
            },
        ],
        ["[input_image left out: this model takes text only]"],
        ["SECRET"],
    ),
    (
        [
            {"type": "computer_call", "call_id": "c", "action": {"type": "screenshot"}},
            {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "u": "SECRET"}},
        ],
        ["[computer_screenshot left out"],
        ["SECRET"],
    ),
    ([{"type": "custom_tool_call_output", "call_id": "unknown", "output": "SECRET"}], [], ["SECRET"]),
]


@pytest.mark.parametrize(("items", "shown", "hidden"), HISTORY, ids=lambda value: str(value)[:40])
def test_items_of_such_tools_are_text_in_the_history(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, items: list[Any], shown: list[str], hidden: list[str]
) -> None:
    prompt = prompt_of(live, monkeypatch, RESPONSES, {"input": [QUESTION, *items, QUESTION]})
    assert [text for text in shown if text not in prompt] == []
    assert [text for text in hidden if text in prompt] == []
    assert prompt.count("Go on.") == 2


BAD_SCHEMA = {"type": "array"}
BAD_TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    CHAT: (
        {
            "messages": saying("Hi"),
            "tools": [
                *({"type": tool["type"]} for tool in OTHER_TOOLS[:3]),
                {"type": "function", "function": {"name": "f", "parameters": BAD_SCHEMA}},
            ],
        },
        "tools[3].function.parameters",
    ),
    RESPONSES: (
        {"input": "x", "tools": [*OTHER_TOOLS[:3], {**F, "name": "find", "parameters": BAD_SCHEMA}]},
        "tools[3].parameters",
    ),
    f"{RESPONSES}/input_tokens": (
        {"input": "x", "tools": [CUSTOM, F, {**NAMESPACE, "tools": [CUSTOM, {**F, "name": "f" * 300}]}]},
        "tools[2].tools[1].name",
    ),
    MESSAGES: (
        {
            "max_tokens": 4,
            "messages": saying("Hi"),
            "tools": [*SERVER_TOOLS, {"name": "f", "input_schema": BAD_SCHEMA}],
        },
        "tools[3].input_schema",
    ),
    "/api/chat": (
        {
            "model": "tiny",
            "messages": saying("Hi"),
            "tools": [
                {"type": "web_search"},
                {"type": "function", "function": {"name": "f", "parameters": BAD_SCHEMA}},
            ],
        },
        "tools[1].function.parameters",
    ),
}


@pytest.mark.parametrize("path", BAD_TOOLS)
def test_a_message_about_a_tool_counts_those_that_the_client_sent(live: LiveServer, path: str) -> None:
    """Also those that are left out, and those in namespaces."""
    body, where = BAD_TOOLS[path]
    answer = live.http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["message"]).startswith(f"{where} ")


def test_server_tools_of_anthropic_are_left_out(live: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    own = {"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}
    body = {"max_tokens": 200, "messages": saying(call("get_weather")), "tools": [*SERVER_TOOLS, own]}
    with caplog.at_level(logging.INFO, "jserve"):
        answer = live.http.post(MESSAGES, json={**body, "mcp_servers": [{"type": "url", "name": "m"}]}).json()
    assert answer["content"][0]["name"] == "get_weather"
    assert sum("bash_20250124" in record.message for record in caplog.records) == 1
    assert live.http.post(f"{MESSAGES}/count_tokens", json=body).status_code == 200
    alone = live.http.post(MESSAGES, json={**body, "messages": saying("Hi"), "tools": SERVER_TOOLS}).json()
    assert alone["content"] == [{"type": "text", "text": "Hi"}]


TEXT_DOCUMENT = {
    "type": "document",
    "title": "Minutes",
    "source": {"type": "text", "media_type": "text/plain", "data": "We met."},
}
FOUND = {"type": "search_result", "source": "a.md", "title": "A", "content": [{"type": "text", "text": "found it"}]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "SECRET"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "SECRET"}}
USED = {"type": "tool_use", "id": "t", "name": "read", "input": {}}
SEARCHED = [
    {"type": "text", "text": "I look."},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "SECRET"}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "s",
        "content": [{"type": "web_search_result", "title": "T", "url": "https://t", "encrypted_content": "SECRET"}],
    },
    {"type": "mcp_tool_use", "id": "m", "name": "find", "server_name": "x", "input": {}},
    {"type": "mcp_tool_result", "tool_use_id": "m", "content": [{"type": "text", "text": "a place"}]},
    {
        "type": "code_execution_tool_result",
        "tool_use_id": "c",
        "content": {"type": "code_execution_result", "stdout": "42", "stderr": "", "return_code": 0, "content": []},
    },
    {"type": "text", "text": "There.", "citations": [{"type": "web_search_result_location"}]},
]


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([{"role": "user", "content": [TEXT_DOCUMENT]}], ["user\nMinutes\nWe met."]),
        ([{"role": "user", "content": [FOUND]}], ["A\na.md\nfound it"]),
        (
            [{"role": "user", "content": [{"type": "document", "source": {"type": "content", "content": "whole"}}]}],
            ["user\nwhole"],
        ),
        ([{"role": "user", "content": [{"type": "something_new"}, {"type": "text", "text": "x"}]}], ["user\nx"]),
        ([QUESTION, {"role": "assistant", "content": SEARCHED}, QUESTION], ["I look.", "https://t", "a place", "42"]),
        (
            [
                QUESTION,
                {"role": "assistant", "content": [USED]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, PDF, FOUND]}],
                },
            ],
            ["[image left out", "[document left out", "found it"],
        ),
    ],
)
def test_blocks_of_anthropic_are_read_for_their_text(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, messages: list[Any], shown: list[str]
) -> None:
    prompt = prompt_of(live, monkeypatch, MESSAGES, {"messages": messages})
    assert [text for text in shown if text not in prompt] == []
    assert "SECRET" not in prompt


@pytest.mark.parametrize("block", [IMAGE, PDF, {"type": "container_upload", "file_id": "f"}])
def test_what_the_user_shows_and_the_model_cannot_read_is_refused(live: LiveServer, block: dict[str, Any]) -> None:
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": [block]}]}
    error = live.http.post(MESSAGES, json=body).json()["error"]
    assert f"messages[0].content[0] has type '{block['type']}'" in error["message"]


def test_images_in_results_are_notes_on_every_route(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use = {"function": {"name": "view", "arguments": {}}}
    chat = [
        QUESTION,
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", **use}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "image_url", "image_url": {"url": "SECRET"}}]},
    ]
    prompt = prompt_of(live, monkeypatch, CHAT, {"messages": chat, "max_tokens": 1})
    assert "tool\n[image_url left out" in prompt
    assert "SECRET" not in prompt
    ollama = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [use]},
        {"role": "tool", "tool_name": "view", "content": "Seen:", "images": ["SECRET"]},
    ]
    prompt = prompt_of(live, monkeypatch, "/api/chat", {"messages": ollama, "stream": False})
    assert "tool\nSeen:\n[image left out" in prompt
    assert "SECRET" not in prompt
