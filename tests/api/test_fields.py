"""Every field of the contract and of OpenAI's API is honoured, accepted without effect, or refused by name."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from tokenizers import Tokenizer

from jserve.api.openai.bodies import ChatBody, CompletionBody
from tests.api.live_server import LiveServer, StartServer
from tests.patience import PATIENCE_S

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

WITHOUT_EFFECT: dict[str, list[Any]] = {
    "user": ["someone"],
    "metadata": [{"a": "b"}],
    "store": [True, False],
    "service_tier": ["auto", "default", "flex", "priority"],
    "prediction": [{"type": "content", "content": "user hello"}],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "prompt_cache_options": [{}],
    "safety_identifier": ["s"],
    "session_id": ["s"],
    "verbosity": ["low", "medium", "high", None],
    "modalities": [["text"], None],
    "spaces_between_special_tokens": [True, False],
    "length_penalty": [0.5, 1.0],
    "use_beam_search": [False, None],
    "watermarking": [False, None],
    "best_of": [1, None],
    "vllm_xargs": [{}, None],
    "kv_transfer_params": [None],
    "media_io_kwargs": [None],
    "mm_processor_kwargs": [None],
    "parallel_tool_calls": [True],
    "tools": [[], [{"type": "web_search"}], None],
    "top_p": [0, 1],
    "documents": [[], None],
    "unknown_field": [1, "x", {"deep": [1]}],
}
"""The answer is the one without them."""
REFUSED: dict[str, list[Any]] = {
    "use_beam_search": [True],
    "watermarking": [True],
    "vllm_xargs": [{"a": 1}],
    "kv_transfer_params": [{"do_remote_decode": True}],
    "logits_processors": [["x"]],
}
REFUSED_IN_CHAT: dict[str, list[Any]] = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "modalities": [["text", "audio"]],
    "web_search_options": [{}],
    "moderation": [{"model": "omni-moderation-latest"}],
    "media_io_kwargs": [{"video": {}}],
    "mm_processor_kwargs": [{"x": 1}],
    "chat_template": ["{{ x }}"],
    "documents": [[{"text": "x"}]],
}
REFUSED_IN_COMPLETIONS: dict[str, list[Any]] = {"best_of": [2], "suffix": ["x"], "prompt_embeds": ["AAAA"]}
ELSEWHERE = {"tools", "tool_choice", "functions", "function_call", "response_format", "reasoning_effort"}
"""What tests of their own are about."""


def _cases(fields: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in fields.items() for value in values]


@pytest.mark.parametrize(
    ("params", "body", "refused"),
    [
        (ChatParams, ChatBody, REFUSED | REFUSED_IN_CHAT),
        (CompletionParams, CompletionBody, REFUSED | REFUSED_IN_COMPLETIONS),
    ],
)
def test_every_field_of_openai_is_known(params: Any, body: Any, refused: dict[str, Any]) -> None:
    names = set(get_type_hints(params)) - ELSEWHERE
    unknown = names - set(body.model_fields) - set(refused) - set(WITHOUT_EFFECT)
    assert not unknown, "decide: honoured, without effect, or refused"


@pytest.mark.parametrize(("name", "value"), _cases(WITHOUT_EFFECT))
def test_a_field_without_effect_is_accepted(server: LiveServer, name: str, value: Any) -> None:
    assert server.chat("hi", **{name: value})["choices"] == server.chat("hi")["choices"]
    assert server.complete("hi", **{name: value})["choices"] == server.complete("hi")["choices"]


@pytest.mark.parametrize(("name", "value"), _cases(REFUSED | REFUSED_IN_CHAT))
def test_chat_refuses_what_it_lacks_by_name(server: LiveServer, name: str, value: Any) -> None:
    _check_refusal(server, CHAT, {"messages": MESSAGES, name: value}, name)


@pytest.mark.parametrize(("name", "value"), _cases(REFUSED | REFUSED_IN_COMPLETIONS))
def test_completions_refuse_what_they_lack_by_name(server: LiveServer, name: str, value: Any) -> None:
    _check_refusal(server, COMPLETIONS, {"prompt": "x", name: value}, name)


def _check_refusal(server: LiveServer, path: str, body: dict[str, Any], name: str) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == name
    assert "support" in error["message"] or "template" in error["message"]


def test_as_many_best_as_choices_are_just_the_choices(server: LiveServer) -> None:
    done = server.complete("abc", n=3, best_of=3, temperature=1, max_tokens=2)
    assert len(done["choices"]) == 3


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ("IDS", ["ab"]),
        ("LISTS", ["ab", "cd"]),
    ],
)
def test_every_form_of_a_prompt(server: LiveServer, tokenizer: Tokenizer, prompt: Any, texts: list[str]) -> None:
    ids = {"IDS": tokenizer.encode("ab").ids, "LISTS": [tokenizer.encode(text).ids for text in ("ab", "cd")]}
    prompt = ids.get(prompt, prompt) if isinstance(prompt, str) else prompt
    done = server.complete(prompt, max_tokens=2, temperature=0)
    assert [choice["text"] for choice in done["choices"]] == texts
    assert done["usage"]["prompt_tokens"] == 2 * len(texts)


def test_special_tokens_are_added_to_completions_and_not_to_chat(server: LiveServer) -> None:
    assert CompletionBody.model_fields["add_special_tokens"].default is True
    assert ChatBody.model_fields["add_special_tokens"].default is False
    for value in (True, False):  # The tokenizer of the tests adds none.
        assert server.complete("ab", add_special_tokens=value)["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "echoed"),
    [
        ({"continue_final_message": True}, "abc"),
        ({}, "abc"),
        ({"add_generation_prompt": False}, "abc"),
        ({"messages": MESSAGES}, ""),
        ({"messages": MESSAGES, "add_generation_prompt": False}, "hi"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "p1"}, "p2"]}]}, "p1\np2"),
    ],
)
def test_echo_in_chat_begins_with_the_message_that_is_answered(
    server: LiveServer, fields: dict[str, Any], echoed: str
) -> None:
    body = {"messages": [*MESSAGES, {"role": "assistant", "content": "abc"}], "max_tokens": 4, **fields}
    plain = server.http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    whole = server.http.post(CHAT, json={**body, "echo": True}).json()["choices"][0]["message"]["content"]
    assert whole == echoed + plain
    events = server.events(CHAT, **body, echo=True)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole


def test_the_prompt_that_the_template_made_is_returned(server: LiveServer) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert server.chat("hi", return_prompt_text=True)["prompt_text"] == prompt
    assert server.chat("hi")["prompt_text"] is None
    assert server.chat("hi", return_prompt_text=True, truncate_prompt_tokens=5)["prompt_text"] == prompt[-5:]
    first, *others = server.events(CHAT, messages=MESSAGES, return_prompt_text=True)
    assert first["prompt_text"] == prompt
    assert not any("prompt_text" in event for event in others)


def test_a_stream_can_speak_less_often(server: LiveServer) -> None:
    whole = server.chat("hello world", ignore_eos=True, max_tokens=30, logprobs=True)
    messages = [{"role": "user", "content": "hello world"}]
    fields = {"messages": messages, "ignore_eos": True, "max_tokens": 30, "logprobs": True}
    events = server.events(CHAT, **fields, stream_interval=7, return_token_ids=True)[1:]
    counts = [len(event["choices"][0]["token_ids"]) for event in events]
    assert counts == [1, 7, 7, 7, 7, 1], "the first at once, the last with what is left"
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert content == whole["choices"][0]["message"]["content"]
    logprobs = [entry for event in events for entry in event["choices"][0]["logprobs"]["content"]]
    assert logprobs == whole["choices"][0]["logprobs"]["content"]
    many = server.events(COMPLETIONS, prompt="abc", n=2, temperature=1, seed=1, max_tokens=9, stream_interval=4)
    texts = ["", ""]
    for event in many:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [c["text"] for c in server.complete("abc", n=2, temperature=1, seed=1, max_tokens=9)["choices"]]
    assert len(many) == 2 * 3
    assert server.http.post(CHAT, json={"messages": MESSAGES, "stream_interval": 0}).status_code == 400


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file: while it is there, the engine makes no step."""
    return tmp_path_factory.mktemp("engine") / "hold"


@pytest.fixture(scope="module")
def talkative(make_server: StartServer, hold: Path) -> Iterator[LiveServer]:
    live = make_server(
        "--step-ms",
        "200",
        "--steps-held-by",
        str(hold),
        stream_interval=3,
        sse_keep_alive_interval_s=0.05,
        enable_force_include_usage=True,
        enable_per_request_metrics=True,
    )
    yield live
    live.stop()


def test_flags_of_the_server_hold_for_every_stream(talkative: LiveServer, hold: Path) -> None:
    hold.touch()
    body = {"prompt": "abc", "max_tokens": 5, "stream": True}
    with talkative.http.stream("POST", COMPLETIONS, json=body) as response:
        text = ""
        for part in response.iter_text():
            text += part
            if text.count(":") >= 5:
                hold.unlink(missing_ok=True)
    frames = text.split("\n\n")
    comments = [frame for frame in frames if frame.startswith(":")]
    assert set(comments) == {": keep-alive"}
    assert len(comments) >= 5, "while nothing comes from the engine"
    *events, usage = [json.loads(frame[6:]) for frame in frames if frame.startswith("data: {")]
    assert [len(event["choices"][0]["text"]) for event in events] == [1, 3, 1]
    assert usage["usage"].items() >= {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}.items()
    assert usage["metrics"]["time_to_first_token_ms"] >= 0
    assert frames[-2:] == ["data: [DONE]", ""]


def test_metrics_of_a_request_are_its_times(talkative: LiveServer) -> None:
    """No shorter than the engine's three steps of 200 ms, no longer than what the client waits."""
    began = time.monotonic()
    metrics = talkative.complete("abc", max_tokens=3)["metrics"]
    waited_ms = (time.monotonic() - began) * 1e3
    parts = ("queue_time_ms", "time_to_first_token_ms", "generation_time_ms")
    assert 590 <= sum(metrics[part] for part in parts) <= waited_ms
    assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"] / 2)
    assert metrics["queue_time_ms"] >= 0
    assert metrics["tokens_per_second"] > 0
    assert talkative.complete("abc", max_tokens=1, n=2, temperature=1)["metrics"] is None


def test_the_openai_client_skips_the_comments(talkative: LiveServer) -> None:
    stream = talkative.openai.completions.create(model="tiny", prompt="abc", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "abc"


def test_metrics_and_usage_are_left_out_where_nobody_asked(server: LiveServer) -> None:
    assert server.complete("abc")["metrics"] is None
    assert not any("usage" in event or "metrics" in event for event in server.events(COMPLETIONS, prompt="abc"))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "", "content": "x"}], "messages[0].role"),
        ([{"role": 5, "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
    ],
)
def test_a_message_that_is_none_is_named(server: LiveServer, messages: Any, param: str) -> None:
    response = server.http.post(CHAT, json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_names_refusals_and_tool_messages_are_understood(server: LiveServer) -> None:
    messages = [
        {"role": "user", "content": "q", "name": "ann"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    body = {"messages": messages, "return_prompt_text": True, "continue_final_message": True}
    done = server.http.post(CHAT, json=body).json()
    # The template knows no tools, so their results are shown to the model in the generic form.
    expected = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\n"
    assert done["prompt_text"] == f"{expected}<tool_response>\n7\n</tool_response>"


def test_the_session_can_stand_in_a_header(server: LiveServer) -> None:
    response = server.http.post(CHAT, json={"messages": MESSAGES}, headers={"X-Session-ID": "s"})
    assert response.status_code == 200


def test_a_client_that_left_gets_no_comment(talkative: LiveServer) -> None:
    body = json.dumps({"prompt": "abc", "max_tokens": 50, "stream": True}).encode()
    with socket.create_connection(
        ("127.0.0.1", int(talkative.url.rpartition(":")[2])), timeout=PATIENCE_S
    ) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    talkative.wait_for(lambda: talkative.server.context.generator.num_open == 0)
