"""What constrains tokens, with the real model behind the real server."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI

from jserve.text.load import load_tokenizer
from tests.acceptance.conftest import LiveServer, StartServer

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> LiveServer:
    return start_server("--max-num-seqs", "8", "--max-model-len", "512", "--kv-cache-memory-bytes", "256MiB")


def complete(server: LiveServer, prompt: str, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, **fields}, timeout=300)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_json_chats_among_plain_ones_are_valid_and_change_nothing(server: LiveServer) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)
    model = client.models.list().data[0].id

    def plain(topic: str) -> str:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"Tell me about {topic}."}], temperature=0, max_tokens=40
        )
        return answer.choices[0].message.content or ""

    def structured(seed: int) -> tuple[str, str]:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Describe a person as JSON."}],
            temperature=1.2,
            seed=seed,
            max_tokens=150,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
        )
        return answer.choices[0].finish_reason, answer.choices[0].message.content or ""

    topics = ["the sea", "bread", "chess"]
    alone = [plain(topic) for topic in topics]
    with ThreadPoolExecutor(9) as pool:
        answers = pool.map(structured, range(6))
        together = list(pool.map(plain, topics))
    assert together == alone
    texts = [text for reason, text in answers if reason == "stop"]
    assert len(texts) >= 5
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert server.metric("jserve:recompiles_after_ready_total") == 0
    assert server.metric("vllm:num_requests_waiting_by_reason") == 0


def test_bad_words_and_allowed_tokens_are_honoured(server: LiveServer, real_gguf: Path) -> None:
    prompt = "The capital of France is"
    usual = complete(server, prompt, temperature=0, max_tokens=20)["text"]
    assert "Paris" in usual
    without = complete(server, prompt, temperature=0, max_tokens=20, bad_words=["Paris"])["text"]
    assert without
    assert "Paris" not in without
    tokenizer = load_tokenizer(real_gguf)
    letters = [token for letter in "ab" for token in tokenizer.encode(letter, add_special_tokens=False)]
    only = complete(server, prompt, temperature=1, max_tokens=20, allowed_token_ids=letters)["text"]
    assert set(only) <= set("ab")


def test_circles_end(server: LiveServer) -> None:
    detection = {"max_pattern_size": 8, "min_pattern_size": 1, "min_count": 5}
    choice = complete(
        server, "yes no " * 20, temperature=0, max_tokens=200, ignore_eos=True, repetition_detection=detection
    )
    assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", "repetition_detected")
    words = choice["text"].split()
    assert any(words[-5 * size :] == words[-size:] * 5 for size in range(1, 9)), words
