"""Promises over many requests at once: streams say what whole answers say, and nothing is left behind."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.acceptance.conftest import LiveServer, StartServer
from tests.patience import wait_until

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parent.parent.parent / "LICENSE").read_text()
WORDS = TEXT.split()
NUM_PROMPTS = 200
TOKENS = 20
TOP = 5
TOLERANCE = 1e-3
"""A logprob in float32 differs by less between two orders of summation."""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> LiveServer:
    return start_server("--dtype", "float32", "--max-num-seqs", "32")


@pytest.fixture(scope="module")
def reference(real_gguf: Path) -> Any:
    folder, name = str(real_gguf.parent), real_gguf.name
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@dataclass
class Answer:
    """One answer, put together where it was streamed."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[float]
    top: list[list[float]]


def prompt_of(number: int) -> str:
    """Prompts of 1 to 60 words, no two alike."""
    return " ".join(WORDS[number * 7 % 1200 :][: 1 + number % 60])


def client_of(server: LiveServer) -> openai.AsyncOpenAI:
    limits = httpx.Limits(max_connections=None)
    http = httpx.AsyncClient(limits=limits, timeout=600)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http)


async def complete(client: openai.AsyncOpenAI, number: int, sampling: dict[str, Any], stream: bool) -> Answer:
    made = await client.completions.create(
        model="", prompt=prompt_of(number), max_tokens=TOKENS, logprobs=TOP, stream=stream,
        extra_body={"return_token_ids": True}, **sampling,
    )  # fmt: skip
    answer = Answer([], [], "", "", [], [])
    parts = [made] if not stream else [part async for part in made]
    for part in parts:
        (choice,) = part.choices
        answer.prompt_ids += getattr(choice, "prompt_token_ids", None) or []
        answer.token_ids += choice.token_ids or []
        answer.text += choice.text
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        if choice.logprobs is not None:
            answer.logprobs += choice.logprobs.token_logprobs
            answer.top += [sorted(best.values(), reverse=True) for best in choice.logprobs.top_logprobs]
    return answer


async def chat(client: openai.AsyncOpenAI, number: int, sampling: dict[str, Any], stream: bool) -> Answer:
    made = await client.chat.completions.create(
        model="", messages=[{"role": "user", "content": prompt_of(number)}], max_tokens=TOKENS, logprobs=True,
        top_logprobs=TOP, stream=stream, extra_body={"return_token_ids": True}, **sampling,
    )  # fmt: skip
    answer = Answer([], [], "", "", [], [])
    parts = [made] if not stream else [part async for part in made]
    for part in parts:
        (choice,) = part.choices
        answer.prompt_ids += getattr(part, "prompt_token_ids", None) or []
        answer.token_ids += getattr(choice, "token_ids", None) or []
        message = choice.delta if stream else choice.message
        answer.text += message.content or ""
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        for position in choice.logprobs.content if choice.logprobs else ():
            answer.logprobs.append(position.logprob)
            answer.top.append([other.logprob for other in position.top_logprobs])
    return answer


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 7}], ids=["greedy", "seeded"])
def test_200_streams_say_what_whole_answers_say_with_the_logprobs_of_transformers(
    server: LiveServer, reference: Any, sampling: dict[str, Any]
) -> None:
    async def ask_all() -> list[tuple[Answer, Answer]]:
        client = client_of(server)
        gate = asyncio.Semaphore(24)

        async def both(number: int) -> tuple[Answer, Answer]:
            ask = chat if number % 2 else complete
            async with gate:
                whole, streamed = await asyncio.gather(
                    ask(client, number, sampling, False), ask(client, number, sampling, True)
                )
            return whole, streamed

        return await asyncio.gather(*(both(number) for number in range(NUM_PROMPTS)))

    for whole, streamed in asyncio.run(ask_all()):
        assert streamed.text == whole.text
        assert streamed.token_ids == whole.token_ids
        assert streamed.finish_reason == whole.finish_reason
        np.testing.assert_allclose(streamed.logprobs, whole.logprobs, atol=TOLERANCE)
        expected = reference_logprobs(reference, whole)
        chosen = expected[np.arange(len(whole.token_ids)), whole.token_ids]
        np.testing.assert_allclose(whole.logprobs, chosen, atol=TOLERANCE)
        best = np.sort(expected, axis=1)[:, ::-1][:, :TOP]
        # Completions list the sampled token too, where it is not among the best.
        np.testing.assert_allclose([top[:TOP] for top in whole.top], best, atol=TOLERANCE)
    assert server.metric("jserve:recompiles_after_ready_total") == 0


def reference_logprobs(reference: Any, answer: Answer) -> np.ndarray:
    """f64[tokens, V] of transformers, for the tokens that the answer holds."""
    with torch.no_grad():
        logits = reference(torch.tensor([answer.prompt_ids + answer.token_ids])).logits[0]
    first = len(answer.prompt_ids) - 1
    return torch.log_softmax(logits[first:-1].double(), -1).numpy()


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": SCHEMA},
}
KINDS = ("whole", "stream", "n=3", "json", "tool", "aborted", "text", "prompt logprobs")


async def ask_kind(client: openai.AsyncOpenAI, number: int) -> Any:
    """One request of the mix. What it returns is greedy, but for n=3, and comparable."""
    kind = KINDS[number % len(KINDS)]
    messages: Any = [{"role": "user", "content": f"Tell me {2 + number // len(KINDS)} facts about Paris."}]
    options: dict[str, Any] = {"model": "", "max_tokens": 32, "temperature": 0.0}
    if kind == "stream":
        parts = await client.chat.completions.create(messages=messages, stream=True, **options)
        return "".join([part.choices[0].delta.content or "" async for part in parts])
    if kind == "n=3":
        options |= {"temperature": 0.9, "seed": number, "n": 3}
        made = await client.chat.completions.create(messages=messages, **options)
        assert sorted(choice.index for choice in made.choices) == [0, 1, 2]
        return [choice.finish_reason for choice in made.choices] and len(made.choices)
    if kind == "json":
        form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
        made = await client.chat.completions.create(messages=messages, response_format=form, **options)
        return made.choices[0].message.content
    if kind == "tool":
        tools: Any = [TOOL]
        made = await client.chat.completions.create(messages=messages, tools=tools, tool_choice="required", **options)
        return [(call.function.name, call.function.arguments) for call in made.choices[0].message.tool_calls]
    if kind == "aborted":
        options["max_tokens"] = 400
        parts = await client.chat.completions.create(
            messages=messages, stream=True, extra_body={"ignore_eos": True}, **options
        )
        count = 0
        async for _ in parts:
            count += 1
            if count == 8 + number // len(KINDS):
                await parts.close()
                return "aborted"
    if kind == "prompt logprobs":
        made = await client.completions.create(prompt=prompt_of(number), logprobs=1, echo=True, **options)
        return made.choices[0].text
    if kind == "text":
        return (await client.completions.create(prompt=prompt_of(number), **options)).choices[0].text
    made = await client.chat.completions.create(messages=messages, **options)
    return made.choices[0].message.content


def test_64_mixed_requests_at_once_leave_nothing_behind_and_get_the_answers_they_get_alone(server: LiveServer) -> None:
    async def alone() -> list[Any]:
        client = client_of(server)
        return [await ask_kind(client, number) for number in range(64)]

    async def together() -> list[Any]:
        client = client_of(server)
        return await asyncio.gather(*(ask_kind(client, number) for number in range(64)))

    assert asyncio.run(together()) == asyncio.run(alone())
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    wait_until(lambda: not any(server.metric(name) for name in names))
    assert server.metric("jserve:recompiles_after_ready_total") == 0
