"""A tiny real model, prompts for it, and engines over one started runner."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams, TokenDelta
from jserve.runtime.start import Started
from tests.worlds import (
    greedy,
    reference,
    reference_greedy,
    reference_logits,
    run,
)

VOCAB = 17
"""Small enough that 20 logprobs are the whole distribution."""
EOS = 2
COUNT = 20
PAGE = 4
NUM_PAGES = 24
PAGE_BYTES = 2 * 2 * 2 * PAGE * 8 * 4
"""Keys and values, 2 layers, 2 KV heads, of 8 floats each."""


def make_prompts() -> dict[str, list[int]]:
    """Twelve prompts of 1 to 40 tokens, of which eight begin like another."""
    rng = random.Random(4)
    stems = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (21, 10)]
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (1, 7, 16, 40)]
    prompts += [stem + [rng.randrange(3, VOCAB) for _ in range(length)] for stem in stems for length in (1, 3, 6, 11)]
    return {f"r{number}": prompt for number, prompt in enumerate(prompts)}


PROMPTS = make_prompts()
EDITS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8},
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 0.7, "frequency_penalty": 2.0, "presence_penalty": -1.0},
    {"logit_bias": {5: 100.0, 6: -100.0}},
    {"logit_bias": {7: 3.0, 8: -3.0}, "frequency_penalty": 0.8},
]
"""What requests may ask to be done to their logits."""


class World:
    """One started runner. `core()` puts a new scheduler, with an empty pool, over the same device state, so that
    every test also finds what the ones before it left in pages and slots.
    """

    def __init__(self, started: Started, folder: Path) -> None:
        self.started = started
        self.model = reference(folder)
        self.greedy = cache(lambda name: reference_greedy(self.model, PROMPTS[name], COUNT))

    def core(self) -> EngineCore:
        return EngineCore(self.started)

    def expected(self, prompt: list[int], params: SamplingParams, count: int = COUNT) -> list[int]:
        """Greedy tokens under edits, from transformers' logits and the definition of every edit."""
        tokens: list[int] = []
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
        for index in range(count):
            logits = reference_logits(self.model, prompt + tokens)[-1].astype(np.float64)
            for token, bias in (params.logit_bias or {}).items():
                logits[token] += bias
            if index < params.min_tokens:
                logits[list(stops)] = -np.inf
            counts = np.bincount(tokens, minlength=VOCAB)
            seen = (counts > 0) | (np.bincount(prompt, minlength=VOCAB) > 0)
            penalty = params.repetition_penalty
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
            logits -= counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
            tokens.append(int(logits.argmax()))
            if tokens[-1] in stops and index >= params.min_tokens:
                break
        return tokens


def run_mixed(
    core: EngineCore,
    requests: dict[str, tuple[list[int], SamplingParams]],
    between: Callable[[int], None] | None = None,
) -> dict[str, list[TokenDelta]]:
    """All at once, each with its own parameters."""
    for name, (prompt, params) in requests.items():
        assert core.add(Request(name, prompt, params)) is None
    return run(core, {}, greedy(1), between)


def check_empty(core: EngineCore) -> None:
    core.scheduler.check()
    stats = core.stats()
    assert (stats.num_pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
