"""Tool calls and reasoning in chat, with the OpenAI client and an engine that says what it is told to."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import CALL, CALL_TIME, HERMES, THINKING, TIME, TOOLS, WEATHER, saying

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def hermes(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=4096)
    yield live
    live.stop()


@pytest.fixture(scope="module")
def thinker(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", chat_template=THINKING, max_model_len=4096)
    yield live
    live.stop()


def ask(server: LiveServer, text: str, **fields: Any) -> dict[str, Any]:
    response = server.http.post(CHAT, json={"messages": saying(text), **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def stream(server: LiveServer, text: str, **fields: Any) -> dict[str, Any]:
    """The choice that a stream amounts to, in the shape of one that is whole."""
    content = reasoning = None
    calls: list[dict[str, Any]] = []
    finish = None
    for chunk in server.events(CHAT, messages=saying(text), **fields):
        [choice] = chunk["choices"]
        delta = choice["delta"]
        content = (content or "") + delta["content"] if delta.get("content") else content
        reasoning = (reasoning or "") + delta["reasoning"] if "reasoning" in delta else reasoning
        assert delta.get("reasoning") == delta.get("reasoning_content")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["type"] == "function"
                calls.append({"id": call["id"], "type": "function", "function": call["function"]})
            else:
                assert call.keys() == {"index", "function"}
                assert call["function"].keys() == {"arguments"}
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    message = {"content": content, "reasoning": reasoning, **({"tool_calls": calls} if calls else {})}
    return {"message": message, "finish_reason": finish}


def without_ids(choice: dict[str, Any]) -> Any:
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return message["content"] or None, message["reasoning"], calls, choice["finish_reason"]


def refuse(server: LiveServer, **fields: Any) -> dict[str, Any]:
    response = server.http.post(CHAT, json={"messages": saying("x"), **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_call_has_the_shape_of_openai(hermes: LiveServer) -> None:
    choice = ask(hermes, CALL, tools=TOOLS)
    message = choice["message"]
    assert message["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    [call] = message["tool_calls"]
    assert call["id"].startswith("chatcmpl-tool-")
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'}


def test_an_answer_without_calls_has_no_list_of_them(hermes: LiveServer) -> None:
    choice = ask(hermes, "Hello", tools=TOOLS)
    assert choice["message"]["content"] == "Hello"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        CALL,
        f"Let me see.\n{CALL}\n{CALL_TIME}",
        "<tool_call>oops</tool_call>",
        '<tool_call>{"name": "get_time", "arg',
        "<think>\nHm.\n</think>\n\nHi",
        f"<think>Hm.</think>{CALL}",
    ],
)
def test_the_stream_is_the_whole_answer(thinker: LiveServer, text: str) -> None:
    whole = ask(thinker, text, tools=TOOLS)
    assert without_ids(stream(thinker, text, tools=TOOLS)) == without_ids(whole)
    assert whole["message"]["reasoning"] == whole["message"]["reasoning_content"]


def test_openai_client_takes_streamed_calls_together(hermes: LiveServer) -> None:
    with hermes.openai.chat.completions.stream(
        model="tiny", messages=saying(f"Let me see.\n{CALL}\n{CALL_TIME}"), tools=TOOLS
    ) as events:
        message = events.get_final_completion().choices[0].message
    assert message.content == "Let me see."
    assert message.tool_calls is not None
    assert [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls] == [
        ("get_weather", {"city": "Köln", "days": 2}),
        ("get_time", {}),
    ]


def test_arguments_come_in_more_than_one_chunk(hermes: LiveServer) -> None:
    chunks = hermes.events(CHAT, messages=saying(CALL), tools=TOOLS)
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert len(deltas) > 5
    assert all(call["index"] == 0 for call in deltas)


def test_one_call_only_where_parallel_calls_are_off(hermes: LiveServer) -> None:
    choice = ask(hermes, f"{CALL}\n{CALL_TIME}", tools=TOOLS, parallel_tool_calls=False)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]


def test_a_call_that_is_cut_off_says_so(hermes: LiveServer) -> None:
    choice = ask(hermes, CALL, tools=TOOLS, max_tokens=75)
    assert choice["finish_reason"] == "length"
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert '{"city": "Köln", "days": 2}'.startswith(arguments)


def test_without_tools_a_call_is_text(hermes: LiveServer) -> None:
    assert ask(hermes, CALL)["message"]["content"] == CALL
    choice = ask(hermes, CALL, tools=TOOLS, tool_choice="none")
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


def prompt_of(server: LiveServer, messages: list[Any], **fields: Any) -> str:
    body = {"messages": messages, "return_prompt_text": True, "max_tokens": 1, **fields}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    text: str = response.json()["prompt_text"]
    return text


def test_tools_are_shown_unless_the_choice_is_none(hermes: LiveServer) -> None:
    assert '"name": "get_weather"' in prompt_of(hermes, saying("x"), tools=TOOLS)
    assert "get_weather" not in prompt_of(hermes, saying("x"), tools=TOOLS, tool_choice="none")
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": False}}
    assert "strict" not in prompt_of(hermes, saying("x"), tools=[strict])


HISTORY: list[Any] = [
    {"role": "user", "content": "How is Bonn?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "I must look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]


def test_calls_and_results_of_earlier_turns_reach_the_template(thinker: LiveServer) -> None:
    text = prompt_of(thinker, HISTORY, tools=TOOLS)
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Bonn"}}</tool_call>' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    assert "<think>I must look.</think>" in text


def test_a_template_that_knows_no_tools_gets_them_in_words(start_server: StartServer) -> None:
    plain = start_server("--quote-token", "0", max_model_len=4096)
    text = prompt_of(plain, [{"role": "system", "content": "Be brief."}, *HISTORY, *saying("x")], tools=TOOLS)
    system = text[: text.index("<|im_end|>")]
    assert system.startswith("<|im_start|>system\nBe brief.")
    assert '"name": "get_weather"' in system
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\nrain\n</tool_response>" in text
    choice = ask(plain, CALL, tools=TOOLS)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_reasoning_is_apart_from_the_content(thinker: LiveServer) -> None:
    choice = ask(thinker, "<think>\nHm.\n</think>\n\nHello")
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == "Hello"


def test_reasoning_that_the_prompt_opens(thinker: LiveServer) -> None:
    fields: dict[str, Any] = {"chat_template_kwargs": {"opens_thinking": True}}
    assert without_ids(ask(thinker, "Hm.</think>Hello", **fields)) == ("Hello", "Hm.", [], "stop")
    assert without_ids(ask(thinker, "Hm. And", **fields)) == (None, "Hm. And", [], "stop")


def test_no_effort_means_no_reasoning(thinker: LiveServer) -> None:
    fields: dict[str, Any] = {"reasoning_effort": "none"}
    assert "<think>\n\n</think>" in prompt_of(thinker, saying("x"), **fields)
    assert without_ids(ask(thinker, "Hello", **fields)) == ("Hello", None, [], "stop")


def test_reasoning_can_be_left_out(thinker: LiveServer) -> None:
    text = "<think>Hm.</think>Hello"
    assert without_ids(ask(thinker, text, include_reasoning=False)) == ("Hello", None, [], "stop")
    assert without_ids(stream(thinker, text, include_reasoning=False)) == ("Hello", None, [], "stop")


def test_reasoning_tokens_are_counted(thinker: LiveServer) -> None:
    body = {"messages": saying("<think>Hmm</think>Ah")}
    usage = thinker.http.post(CHAT, json=body).json()["usage"]
    # One token per byte: the end of the opening tag, three letters, and the closing tag but for its end.
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 1 + len("Hmm</think")}
    assert usage["completion_tokens"] == len("<think>Hmm</think>Ah") + 1


def test_a_model_that_does_not_reason_counts_none(hermes: LiveServer) -> None:
    usage = hermes.http.post(CHAT, json={"messages": saying("Ah")}).json()["usage"]
    assert "reasoning" not in json.dumps(usage)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "`tools` must be set"),
        ({"tool_choice": "auto"}, "tool_choice", "When using `tool_choice`, `tools` must be set."),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", ""),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "absent"}}},
            "tool_choice",
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
        ),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "'web_search'"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice", "'custom'"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "needs `tools`, a list"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "must be an object's schema",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "use `tools`"),
        ({"function_call": "auto"}, "function_call", "use `tool_choice`"),
    ],
)
def test_what_makes_no_sense_is_refused(hermes: LiveServer, fields: Any, param: str, message: str) -> None:
    error = refuse(hermes, **fields)
    assert param in error["param"]
    assert message in error["message"]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [{"type": "custom"}, *tools]}}


def test_allowed_tools_are_the_only_ones_that_are_shown_and_called(hermes: LiveServer) -> None:
    choice = ask(hermes, CALL, tools=TOOLS, tool_choice=allowed("auto", "get_weather"))
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    prompt = prompt_of(hermes, saying("x"), tools=TOOLS, tool_choice=allowed("auto", "get_time"))
    assert "get_time" in prompt
    assert "get_weather" not in prompt
    assert "get_time" not in prompt_of(hermes, saying("x"), tools=TOOLS, tool_choice=allowed("auto"))
    assert "none of the `tools`" in refuse(hermes, tools=TOOLS, tool_choice=allowed("required"))["message"]


@pytest.mark.parametrize("budget", [-2, 3])
def test_a_budget_of_thought_that_makes_no_sense_is_refused(hermes: LiveServer, budget: int) -> None:
    assert refuse(hermes, thinking_token_budget=budget)["param"] == "thinking_token_budget"


def test_the_use_of_the_parser_is_counted(hermes: LiveServer) -> None:
    def count(**labels: str) -> float:
        name = "vllm:tool_call_parser_invocations_total"
        return hermes.metric(name, request_type="chat_completions", **labels)

    before = count(mode="non_streaming", outcome="tool_call"), count(mode="streaming", outcome="no_tool_call")
    ask(hermes, CALL, tools=TOOLS)
    stream(hermes, "Hello", tools=TOOLS)
    after = count(mode="non_streaming", outcome="tool_call"), count(mode="streaming", outcome="no_tool_call")
    assert after == (before[0] + 1, before[1] + 1)


def test_whatever_a_model_writes_is_no_error(hermes: LiveServer) -> None:
    rng = random.Random(5)
    bits = [
        "<tool_call>",
        "</tool_call>",
        '{"name": "',
        "get_time",
        '", "arguments": {',
        "}",
        '"',
        "\\",
        "\n",
        "[",
        "é",
    ]
    for _ in range(30):
        text = "".join(rng.choices(bits, k=12))
        assert without_ids(ask(hermes, text, tools=[TIME])) == without_ids(stream(hermes, text, tools=[TIME]))
