"""/v1/chat/completions: the rendered prompt is `<|im_start|>user\\nTEXT<|im_end|>...`, and comes back."""

import openai
import pytest
from tokenizers import Tokenizer

from tests.api.live_server import LiveServer


def test_answer_has_the_shape_of_openai(server: LiveServer) -> None:
    body = server.chat("hi there")
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", "user\nhi there")
    assert message["refusal"] is None
    assert "tool_calls" not in message
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("stop", None, None)
    assert {"service_tier", "prompt_logprobs", "kv_transfer_params"} <= body.keys()


def test_openai_client_reads_it(server: LiveServer) -> None:
    done = server.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_completion_tokens=4
    )
    assert done.choices[0].message.content == "use"
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + 4
    with pytest.raises(openai.NotFoundError):
        server.openai.chat.completions.create(model="absent", messages=[{"role": "user", "content": "x"}])


def test_without_max_tokens_the_rest_of_the_context_is_used(server: LiveServer) -> None:
    body = server.chat("hi", ignore_eos=True)
    assert body["usage"]["total_tokens"] == 256


def test_max_completion_tokens_wins(server: LiveServer) -> None:
    assert server.chat("hi", max_tokens=9, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_content_parts_and_developer_role_are_understood(server: LiveServer) -> None:
    parts = [{"type": "text", "text": "hello"}]
    messages = [{"role": "developer", "content": parts}]
    response = server.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.json()["choices"][0]["message"]["content"] == "system\nhello"


def test_final_message_can_be_continued(server: LiveServer) -> None:
    messages = [{"role": "assistant", "content": "abc"}]
    response = server.http.post(
        "/v1/chat/completions",
        json={
            "messages": messages,
            "continue_final_message": True,
            "max_tokens": 30,
            "return_token_ids": True,
        },
    )
    body = response.json()
    assert body["usage"]["prompt_tokens"] == 1 + len("assistant\nabc")
    assert body["choices"][0]["message"]["content"].startswith("assistant\nabcassistant")


def test_generation_prompt_can_be_left_out(server: LiveServer) -> None:
    with_prompt = server.chat("hi")["usage"]["prompt_tokens"]
    without = server.chat("hi", add_generation_prompt=False)["usage"]["prompt_tokens"]
    assert with_prompt > without


def test_logprobs_are_the_true_best_sorted(server: LiveServer, tokenizer: Tokenizer) -> None:
    body = server.chat("hi", logprobs=True, top_logprobs=2, max_tokens=3)
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["<|im_start|>", "u", "s"]
    u = tokenizer.token_to_id("u")
    assert content[1]["bytes"] == [ord("u")]
    assert content[1]["logprob"] == -3.0
    top = content[1]["top_logprobs"]
    assert [entry["logprob"] for entry in top] == [-1.0, -2.0]
    assert [entry["token"] for entry in top] == [tokenizer.id_to_token(u + 1), tokenizer.id_to_token(u + 2)]


def test_logprobs_without_top_have_the_sampled_token_only(server: LiveServer) -> None:
    content = server.chat("hi", logprobs=True, max_tokens=2)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[], []]


def test_tokens_as_ids(server: LiveServer, tokenizer: Tokenizer) -> None:
    body = server.chat("hi", logprobs=True, max_tokens=2, return_tokens_as_token_ids=True)
    content = body["choices"][0]["logprobs"]["content"]
    assert content[1]["token"] == f"token_id:{tokenizer.token_to_id('u')}"


def test_choices_have_their_indices(server: LiveServer) -> None:
    body = server.chat("hi", n=3, temperature=1.0, max_tokens=5, ignore_eos=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]


def test_request_id_becomes_part_of_the_id(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "x"}]
    response = server.http.post("/v1/chat/completions", json={"messages": messages}, headers={"X-Request-Id": "mine-1"})
    assert response.json()["id"] == "chatcmpl-mine-1"
    assert response.headers["x-request-id"] == "mine-1"
    assert server.chat("x", request_id="two")["id"] == "chatcmpl-two"
