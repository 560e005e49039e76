"""A tiny engine whose tokenizer is real, for requests with constraints."""

import json
import re
from functools import cache
from typing import Any

import jsonschema

from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams, TokenDelta
from jserve.runtime.start import Started
from jserve.text.tokenizers.tokenizer import Tokenizer
from tests.worlds import greedy, reference, run, tokens_of

VOCAB = 650
"""Some more than the tokenizer has, and no multiple of 32."""
EOS, OTHER_EOS = 2, 0
PAGE = 4
PAGE_BYTES = 2 * 2 * 2 * PAGE * 8 * 4
NUM_PAGES = 60

SIZES: dict[str, Any] = {
    "dtype": "float32",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "max_model_len": 128,
    "page_size": PAGE,
    "kv_cache_memory_bytes": NUM_PAGES * PAGE_BYTES,
}

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
JSON_GRAMMAR = json.dumps({"grammars": [{"json_schema": {**SCHEMA, "x-guidance": {"whitespace_flexible": False}}}]})
LIST_GRAMMAR = 'start: "[" item ("," item)* "]"\nitem: /[0-9]{1,3}/ | list\nlist: "[" item? "]"'
REGEXES = {
    "start: /(yes|no)( sir)?/": r"(yes|no)( sir)?",
    "start: /[a-c]{2,9}x/": r"[a-c]{2,9}x",
    "start: /([0-9]{1,3}\\.){3}[0-9]{1,3}/": r"([0-9]{1,3}\.){3}[0-9]{1,3}",
    "start: /.{0,5}é?/": r".{0,5}é?",
}


class World:
    """One started runner, and a tokenizer that it shares with its grammars."""

    def __init__(self, started: Started, tokenizer: Tokenizer) -> None:
        self.started = started
        self.tokenizer = tokenizer
        self.model = reference(tokenizer.source)
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


def is_sentence(grammar: str, text: str) -> bool:
    if grammar in REGEXES:
        return re.fullmatch(REGEXES[grammar], text) is not None
    if grammar == LIST_GRAMMAR:
        return re.fullmatch(r"[0-9\[\],]+", text) is not None and text.startswith("[") and text.endswith("]")
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


GRAMMARS = [JSON_GRAMMAR, LIST_GRAMMAR, *REGEXES]
