"""`thinking_token_budget` from end to end: a tiny random model, whose thoughts end by the budget or not at all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from tokenizers import AddedToken

from tests.acceptance.conftest import LiveServer, free_port, wait_until_ready
from tests.patience import PATIENCE_S
from tests.text.tokenizers.tokenizer_maker import train_byte_level
from tests.worlds import make_model

SEEDS = range(12)
BUDGET = 7
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, executables: str) -> Iterator[LiveServer]:
    backend = train_byte_level("gpt-2")
    backend.add_tokens([AddedToken("</think>", special=False, normalized=False)])
    folder = make_model(tmp_path_factory.mktemp("thinker"), "LlamaForCausalLM", vocab_size=650, eos_token_id=2)
    backend.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    flags = ["--port", str(free_port()), "--compile-cache-dir", executables, "--dtype", "float32"]
    flags += ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--kv-cache-memory-bytes", str(4 << 20)]
    log = Path(folder / "log.txt")
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "jserve", "--model", str(folder), *flags], stderr=out)
    server = LiveServer(f"http://127.0.0.1:{flags[1]}", process, log)
    try:
        wait_until_ready(server, str(log))
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def body(seed: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    inputs = {"messages": messages, "seed": seed, "temperature": 1.0, "max_tokens": 40, "return_token_ids": True}
    return {**inputs, "thinking_token_budget": BUDGET, **fields}


def ask(server: LiveServer, seed: int, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body(seed, **fields), timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer["choices"][0], answer["usage"]


def ask_streamed(server: LiveServer, seed: int, **fields: Any) -> tuple[str, str, dict[str, Any]]:
    content, reasoning, usage = "", "", {}
    request = body(seed, stream=True, stream_options={"include_usage": True}, **fields)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=request, timeout=PATIENCE_S) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                content += choice["delta"].get("content") or ""
                reasoning += choice["delta"].get("reasoning") or ""
    return content, reasoning, usage


@pytest.mark.parametrize(
    "form", [{}, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}]
)
def test_reasoning_ends_within_its_budget(thinker: LiveServer, form: dict[str, Any]) -> None:
    backend = train_byte_level("gpt-2")
    end = backend.get_vocab_size()  # The closing tag is the next token after these.
    num_full = 0
    for seed in SEEDS:
        choice, usage = ask(thinker, seed, **form)
        tokens = choice["token_ids"]
        thought = tokens.index(end) if end in tokens else len(tokens) - (choice["finish_reason"] == "stop")
        for begun in range(BUDGET, thought):  # A grammar ends no thought inside a character.
            assert form
            assert backend.decode(tokens[:begun]).endswith("\ufffd")
        assert usage["completion_tokens_details"]["reasoning_tokens"] == thought
        num_full += thought >= BUDGET
        if form and choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        message = choice["message"]
        content, reasoning, streamed = ask_streamed(thinker, seed, **form)
        assert (content, reasoning) == (message["content"] or "", message["reasoning"] or "")
        assert streamed["completion_tokens_details"] == usage["completion_tokens_details"]
    assert num_full > len(SEEDS) // 2


def test_without_a_budget_the_same_model_thinks_longer(thinker: LiveServer) -> None:
    used = [ask(thinker, seed, thinking_token_budget=None)[1]["completion_tokens_details"] for seed in range(4)]
    assert max(details["reasoning_tokens"] for details in used) > 2 * BUDGET


def test_a_budget_of_nothing_ends_the_thought_at_once(thinker: LiveServer) -> None:
    choice, usage = ask(thinker, 1, thinking_token_budget=0)
    assert not choice["message"]["reasoning"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
