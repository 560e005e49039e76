"""Grammars, budgets and bad words in the engine's core: on a tiny random model, whose choices are noise."""

import json
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from jserve.config import EngineConfig
from jserve.engine import EngineCore
from jserve.errors import CheckpointError
from jserve.protocol import Request, SamplingParams, ThinkingBudget, TokenDelta
from jserve.runtime.start import Started, start_runner
from jserve.text.tokenizer import Tokenizer
from tests.text.tokenizer_maker import train_byte_level
from tests.worlds import greedy, make_model, run, tokens_of

VOCAB = 650
"""Some more than the tokenizer has, and no multiple of 32."""
EOS, OTHER_EOS = 2, 0
PAGE = 4
PAGE_BYTES = 2 * 2 * 2 * PAGE * 8 * 4
NUM_PAGES = 60

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "size"],
    "additionalProperties": False,
}
JSON_GRAMMAR = json.dumps(
    {"grammars": [{"json_schema": {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}}]}
)
LIST_GRAMMAR = 'start: "[" item ("," item)* "]"\nitem: /[0-9]{1,3}/ | list\nlist: "[" item? "]"'
REGEXES = {
    'start: /(yes|no)( sir)?/': r"(yes|no)( sir)?",
    "start: /[a-c]{2,9}x/": r"[a-c]{2,9}x",
    "start: /([0-9]{1,3}\\.){3}[0-9]{1,3}/": r"([0-9]{1,3}\.){3}[0-9]{1,3}",
    "start: /.{0,5}é?/": r".{0,5}é?",
}


class World:
    def __init__(self, started: Started, tokenizer: Tokenizer) -> None:
        self.started = started
        self.tokenizer = tokenizer
        self.plain = cache(lambda text, count: self.alone(text, greedy(count)))

    def core(self) -> EngineCore:
        return EngineCore(self.started)

    def prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def alone(self, text: str, params: SamplingParams) -> list[int]:
        return tokens_of(run(self.core(), {"alone": self.prompt(text)}, params)["alone"])

    def text(self, deltas: list[TokenDelta]) -> str:
        """Without the token that stopped it."""
        tokens = tokens_of(deltas)
        ends = deltas[-1].finish_reason == "stop"
        return self.tokenizer.decode(tokens[:-1] if ends else tokens, skip_special_tokens=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    folder = make_model(
        tmp_path_factory.mktemp("model"), "LlamaForCausalLM", vocab_size=VOCAB, eos_token_id=[EOS, OTHER_EOS]
    )
    backend = train_byte_level("gpt-2")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_model_len=128,
        page_size=PAGE,
        kv_cache_memory_bytes=NUM_PAGES * PAGE_BYTES,
        compile_cache_dir=executables,
    )
    return World(start_runner(config, lambda *_: None), Tokenizer(backend, source=folder))


def run_all(
    core: EngineCore, requests: dict[str, tuple[list[int], SamplingParams]], between: Any = None
) -> dict[str, list[TokenDelta]]:
    for name, (prompt, params) in requests.items():
        assert core.add(Request(name, prompt, params)) is None
    return run(core, {}, greedy(1), between)


def check_empty(core: EngineCore) -> None:
    core.scheduler.check()
    stats = core.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting, stats.num_deferred) == (0, 0, 0, 0)


def test_smoke(world: World) -> None:
    core = world.core()
    requests = {}
    for number in range(6):
        params = SamplingParams(temperature=1.5, seed=number, max_tokens=100, grammar=JSON_GRAMMAR)
        requests[f"g{number}"] = (world.prompt("hello"), params)
    deltas = run_all(core, requests)
    for name, found in deltas.items():
        print(name, found[-1], world.text(found))
