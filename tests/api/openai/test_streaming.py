"""Server-sent events: framing, chunks, usage, and the equality of streamed and whole answers."""

import asyncio
import json
import re
import socket
from collections import defaultdict
from typing import Any

import httpx
import pytest

from tests.api.live_server import LiveServer
from tests.patience import PATIENCE_S

MESSAGES = [{"role": "user", "content": "né🎉 hello world"}]


def _texts(events: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = defaultdict(str)
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    return texts


def test_chat_begins_with_the_role_and_ends_with_the_reason(server: LiveServer) -> None:
    events = server.events("/v1/chat/completions", messages=MESSAGES)
    first, *middle, last = events
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert all("role" not in event["choices"][0]["delta"] for event in middle)
    assert all(event["choices"][0]["finish_reason"] is None for event in middle)
    assert all(event["object"] == "chat.completion.chunk" for event in events)
    assert len({event["id"] for event in events}) == 1
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["stop_reason"] is None
    assert "system_fingerprint" in last
    assert not any("system_fingerprint" in event or "usage" in event for event in [first, *middle])


def test_usage_comes_last_with_no_choices(server: LiveServer) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "hello"}),
    ):
        events = server.events(path, **body, stream_options={"include_usage": True})
        assert events[-1]["choices"] == []
        usage = events[-1]["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert not any("usage" in event for event in events[:-1])


def test_usage_on_every_chunk(server: LiveServer) -> None:
    events = server.events(
        "/v1/completions",
        prompt="hello",
        max_tokens=4,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert events[-1]["system_fingerprint"]


def test_nothing_is_generated_before_the_role(server: LiveServer) -> None:
    events = server.events(
        "/v1/chat/completions",
        messages=MESSAGES,
        max_tokens=4,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    assert events[0]["usage"]["completion_tokens"] == 0 < events[1]["usage"]["completion_tokens"]
    assert events[0]["usage"]["total_tokens"] == events[0]["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": ["lo wo"]},
        {"stop": ["lo wo"], "include_stop_str_in_output": True},
        {"stop": ["hello worlds", "rl"], "min_tokens": 12},
        {"n": 4, "temperature": 0.8, "seed": 3, "ignore_eos": True, "max_tokens": 50},
        {"logprobs": True, "top_logprobs": 3},
        {"max_tokens": 9},
        {"skip_special_tokens": False, "ignore_eos": True, "max_tokens": 60},
    ],
)
def test_streamed_chat_put_together_is_the_whole_answer(server: LiveServer, fields: dict[str, Any]) -> None:
    whole = server.chat(MESSAGES[0]["content"], **fields)
    events = server.events("/v1/chat/completions", messages=MESSAGES, **fields)
    texts = _texts(events)
    reasons = {
        choice["index"]: (choice["finish_reason"], choice.get("stop_reason"))
        for event in events
        for choice in event["choices"]
        if choice["finish_reason"] is not None
    }
    logprobs: list[Any] = []
    for event in events:
        logprobs += event["choices"][0].get("logprobs", {}).get("content", [])
    for choice in whole["choices"]:
        assert texts[choice["index"]] == choice["message"]["content"]
        assert reasons[choice["index"]] == (choice["finish_reason"], choice["stop_reason"])
    assert logprobs == ((whole["choices"][0]["logprobs"] or {}).get("content", []))


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"n": 2, "temperature": 1.0, "seed": 1}, {"logprobs": 2}])
def test_streamed_completion_put_together_is_the_whole_answer(server: LiveServer, fields: dict[str, Any]) -> None:
    prompts = ["né🎉 hello", "other text"]
    whole = server.complete(prompts, **fields)
    events = server.events("/v1/completions", prompt=prompts, **fields)
    texts = _texts(events)
    offsets: dict[int, list[int]] = defaultdict(list)
    for event in events:
        for choice in event["choices"]:
            offsets[choice["index"]] += (choice["logprobs"] or {}).get("text_offset", [])
    for choice in whole["choices"]:
        assert texts[choice["index"]] == choice["text"]
        assert offsets[choice["index"]] == (choice["logprobs"] or {}).get("text_offset", [])


def test_no_part_of_a_stop_string_is_streamed(server: LiveServer) -> None:
    events = server.events("/v1/completions", prompt="abc STOP def", stop="STOP", max_tokens=50)
    pieces = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(pieces) == "abc "
    assert not any("S" in piece for piece in pieces)


def test_openai_client_streams(server: LiveServer) -> None:
    stream = server.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "user\nhello"
    assert chunks[-1].usage is not None


def test_all_choices_of_a_step_go_out_in_one_write(server: LiveServer) -> None:
    body = {"prompt": "abc", "n": 8, "temperature": 1, "max_tokens": 10, "stream": True}
    content = json.dumps(body).encode()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)
        )
        raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    http_chunks = re.findall(rb"\r\n[0-9a-f]+\r\ndata: ", raw)
    assert raw.count(b'"text":') == 80
    assert 1 <= len(http_chunks) <= 10, "one per step of the engine at most"


def test_many_streams_at_once_get_their_own_text(server: LiveServer) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> tuple[str, str]:
        prompt = f"number {number:03d} "
        body = {"prompt": prompt, "max_tokens": 44, "stream": number % 2 == 0, "temperature": 0}
        response = await client.post("/v1/completions", json=body)
        if number % 2:
            return prompt, response.json()["choices"][0]["text"]
        events = [frame.removeprefix("data: ") for frame in response.text.split("\n\n")[:-2]]
        return prompt, "".join(json.loads(e)["choices"][0]["text"] for e in events)

    async def all_of_them() -> list[tuple[str, str]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=PATIENCE_S) as client:
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    for prompt, text in asyncio.run(all_of_them()):
        assert text == (prompt * 8)[: len(text)]
        assert len(text) == 44
