"""The real model behind the real server, through the OpenAI client."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.acceptance.conftest import LiveServer, StartServer, wait_until_ready

pytestmark = pytest.mark.slow

TOPICS = ("the sea", "Paris", "bread", "the moon", "chess", "rain", "bees", "glass", "trains", "maps")
QUESTIONS = [f"Tell me {count} facts about {topic}." for topic in TOPICS for count in ("two", "three", "four", "five")][
    :32
]
TINY_POOL = str(2 * 30 * 3 * 64 * 4 * 32 * 140)
"""Bytes of 140 pages: about a tenth of the automatic pool."""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> LiveServer:
    server = start_server()
    wait_for_all_programs(server)
    return server


def wait_for_all_programs(server: LiveServer) -> None:
    """Give the programs compiled behind the time to arrive, so that the machine is quiet."""
    time.sleep(20)


def client_of(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)


def ask(client: OpenAI, question: str, stream: bool, tokens: int = 48) -> str:
    model = client.models.list().data[0].id
    request = {"model": model, "max_tokens": tokens, "temperature": 0.0}
    messages = [{"role": "user", "content": question}]
    if not stream:
        answer = client.chat.completions.create(messages=messages, **request)
        return answer.choices[0].message.content
    parts = client.chat.completions.create(messages=messages, stream=True, **request)
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


@pytest.fixture(scope="module")
def answers_alone(server: LiveServer) -> list[str]:
    client = client_of(server)
    return [ask(client, question, stream=False) for question in QUESTIONS]


def ask_all_at_once(server: LiveServer) -> list[str]:
    client = client_of(server)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(lambda pair: ask(client, pair[1], stream=pair[0] % 2 == 0), enumerate(QUESTIONS)))


def test_the_model_answers_in_english(server: LiveServer) -> None:
    answer = ask(client_of(server), "What is the capital of France?", stream=False)
    assert "Paris" in answer, answer


def test_32_mixed_chats_at_once_get_the_answers_they_get_alone(server: LiveServer, answers_alone: list[str]) -> None:
    assert ask_all_at_once(server) == answers_alone
    assert server.metric("jserve:recompiles_after_ready_total") == 0
    assert server.metric("vllm:num_requests_running") == 0


def test_a_tenth_of_the_pool_gives_the_same_answers_by_preemption(
    start_server: StartServer, answers_alone: list[str]
) -> None:
    small = start_server("--kv-cache-memory-bytes", TINY_POOL, "--max-model-len", "2048")
    assert ask_all_at_once(small) == answers_alone
    long = client_of(small)
    prompt = " ".join(QUESTIONS)
    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(lambda _: ask(long, prompt, stream=True, tokens=200), range(32)))
    assert len(set(texts)) == 1
    assert small.metric("vllm:num_preemptions_total") > 0
    assert small.metric("jserve:recompiles_after_ready_total") == 0
    assert small.metric("vllm:kv_cache_usage_perc") == 0


def first_token_seconds(client: OpenAI, prompt: str) -> float:
    start = time.perf_counter()
    parts = client.completions.create(
        model=client.models.list().data[0].id, prompt=prompt, max_tokens=4, temperature=0, stream=True
    )
    next(iter(parts))
    elapsed = time.perf_counter() - start
    for _ in parts:
        pass
    return elapsed


def test_a_known_prefix_halves_the_time_to_first_token(server: LiveServer) -> None:
    client = client_of(server)
    ratios = []
    for attempt in range(3):
        prefix = " ".join(f"{attempt}{word}" for word in range(400))
        cold, warm = (first_token_seconds(client, f"{prefix} {end}") for end in ("one", "two"))
        ratios.append(warm / cold)
    assert statistics.median(ratios) < 0.5, ratios


def test_a_killed_engine_fails_open_requests_at_once_and_comes_back(start_server: StartServer) -> None:
    server = start_server()
    engine = engine_pid(server)
    failed: dict[str, float] = {}

    def stream() -> None:
        try:
            ask(client_of(server), "Write a very long story.", stream=True, tokens=2000)
        except (openai.APIError, httpx.TransportError):
            failed["stream"] = time.monotonic()

    def whole() -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client_of(server), "Write another very long story.", stream=False, tokens=2000)
        failed["whole"] = time.monotonic()
        assert caught.value.status_code == 500

    threads = [threading.Thread(target=work) for work in (stream, whole)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    killed = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert set(failed) == {"stream", "whole"}
    assert max(failed.values()) - killed < 1.0
    time.sleep(0.5)
    wait_until_ready(server)
    assert "Paris" in ask(client_of(server), "What is the capital of France?", stream=False)


def engine_pid(server: LiveServer) -> int:
    return next(children_of(server.process.pid))


def children_of(parent: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                yield int(entry)
