"""Prompts for a benchmark: random ones of a wanted length, lines of a file, or a ShareGPT-like data set.

Without a tokenizer a prompt's length is counted in words of `words.txt`, each of which is one token in the
usual byte-level BPE vocabularies; what the server really counted is reported from its `usage`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jserve.api.telemetry.workload import BLOCK_TOKENS, read_trace

WORDS_FILE = Path(__file__).with_name("words.txt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to make: its text, and how many tokens to ask for."""

    text: str
    output_len: int
    history: tuple[dict[str, str], ...] = ()
    """Chat messages that go before it; for the chat endpoint only."""
    due_s: float | None = None
    """When a trace says that it comes, from the trace's first request on."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """What prompts to make. Lengths are tokens; `range_ratio` r spreads them over length * (1-r .. 1+r)."""

    dataset: str = "random"
    path: Path | None = None
    input_len: int = 128
    output_len: int = 128
    range_ratio: float = 0.0
    shared_prefix_len: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"--random-range-ratio is {self.range_ratio} but must be at least 0 and below 1")
        if self.input_len < 1 or self.output_len < 1 or self.shared_prefix_len < 0:
            raise ValueError(
                "--random-input-len and --random-output-len must be at least 1, --random-prefix-len at least 0"
            )
        if self.dataset != "random" and self.path is None:
            raise ValueError(f"--dataset-name {self.dataset} needs --dataset-path FILE")


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, or in a model folder that holds one."""
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"--tokenizer {path}: no tokenizer.json there; give that file or its folder")
    return Tokenizer.from_file(str(file))


def make_prompts(spec: PromptSpec, count: int, seed: str, tokenizer: Tokenizer | None) -> list[Prompt]:
    """`count` prompts, of a trace all where it is 0; the same `seed` gives the same ones, another seed others.

    Raises ValueError for a file that holds none, ConfigError for a line of a trace that is none.
    """
    rng = random.Random(seed)
    if spec.dataset == "random":
        return random_prompts(spec, count, rng, tokenizer)
    assert spec.path is not None
    if spec.dataset == "timed_trace":
        return trace_prompts(spec.path, count, seed, tokenizer)
    read = list(read_file(spec) if spec.dataset == "custom" else read_sharegpt(spec, tokenizer))
    if not read:
        raise ValueError(f"{spec.path} holds no prompt that a {spec.dataset} data set can use")
    rng.shuffle(read)
    return [read[i % len(read)] for i in range(count)]


def random_prompts(spec: PromptSpec, count: int, rng: random.Random, tokenizer: Tokenizer | None) -> list[Prompt]:
    """Prompts of random words, all beginning with the same `shared_prefix_len` tokens."""
    words = WORDS_FILE.read_text().split()
    prefix = random_text(spec.shared_prefix_len, words, rng, tokenizer)
    prompts = []
    for _ in range(count):
        length = spread(spec.input_len, spec.range_ratio, rng)
        body = random_text(length, words, rng, tokenizer)
        prompts.append(Prompt(f"{prefix} {body}".strip(), spread(spec.output_len, spec.range_ratio, rng)))
    return prompts


def random_text(length: int, words: list[str], rng: random.Random, tokenizer: Tokenizer | None) -> str:
    """Text of `length` tokens: that many words, cut to the length when a tokenizer can say where."""
    text = " ".join(rng.choices(words, k=length))
    if tokenizer is None or length == 0:
        return text
    ids = tokenizer.encode(text, add_special_tokens=False).ids  # never fewer than one a word
    return tokenizer.decode(ids[:length]).strip()


def spread(length: int, ratio: float, rng: random.Random) -> int:
    """A length drawn evenly from `length * (1 - ratio)` to `length * (1 + ratio)`, at least 1."""
    return max(1, rng.randint(round(length * (1 - ratio)), round(length * (1 + ratio))))


def trace_prompts(path: Path, count: int, seed: str, tokenizer: Tokenizer | None) -> list[Prompt]:
    """Prompts of a trace's lengths, which begin alike where its blocks say so, in the order in which they came."""
    recorded = sorted(
        (each for each in read_trace(path) if each.input_length > 0 and each.hash_ids), key=lambda each: each.timestamp
    )
    recorded = recorded[:count] if count else recorded
    if not recorded:
        raise ValueError(f"{path} holds no request with a prompt")
    words = WORDS_FILE.read_text().split()

    def block(number: int, length: int) -> str:
        return random_text(length, words, random.Random(f"{seed} {number}"), tokenizer)

    return [
        Prompt(
            " ".join(
                block(number, min(BLOCK_TOKENS, each.input_length - place * BLOCK_TOKENS))
                for place, number in enumerate(each.hash_ids)
                if each.input_length > place * BLOCK_TOKENS
            ),
            max(1, each.output_length),
            due_s=(each.timestamp - recorded[0].timestamp) / 1e3,
        )
        for each in recorded
    ]


def read_file(spec: PromptSpec) -> Iterator[Prompt]:
    """Prompts of a text file, one a line, or of JSON lines with `prompt` and perhaps `output_tokens`."""
    assert spec.path is not None
    for line in spec.path.read_text().splitlines():
        if not line.strip():
            continue
        if spec.path.suffix == ".jsonl":
            record = json.loads(line)
            yield Prompt(record["prompt"], int(record.get("output_tokens", record.get("output_len", spec.output_len))))
        else:
            yield Prompt(line, spec.output_len)


def read_sharegpt(spec: PromptSpec, tokenizer: Tokenizer | None) -> Iterator[Prompt]:
    """First question of each conversation; with a tokenizer, asks for as many tokens as its answer has."""
    assert spec.path is not None
    text = spec.path.read_text()
    records: list[dict[str, Any]]
    if text.lstrip().startswith("["):
        records = json.loads(text)
    else:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    for record in records:
        turns = [
            turn.get("value") or turn.get("content") or ""
            for turn in record.get("conversations") or record.get("messages") or []
        ]
        if not turns or not turns[0]:
            continue
        length = spec.output_len
        if tokenizer is not None and len(turns) > 1 and turns[1]:
            length = max(1, len(tokenizer.encode(turns[1], add_special_tokens=False).ids))
        yield Prompt(turns[0], length)
