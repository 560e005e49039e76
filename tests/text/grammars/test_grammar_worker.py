"""The verdict on a grammar: what it would meet while it runs, and the memory that it takes, are known before."""

from pathlib import Path
from typing import Any

import pytest

from jserve.constrain.limits import MAX_COMPILED_BYTES
from jserve.text.grammars.grammar_worker import GrammarJob, GrammarSetup, GrammarWorker, Reasoning
from jserve.text.grammars.structured import StructuredOutput
from jserve.text.load import load_tokenizer

NEVER_ENDING = [
    "[^q]*[aeiou][^q]{99}|[^q]*[stnr][^q]{98}|[^q]*[lcdm][^q]{97}|[^q]*[A-Z][^q]{96}|[^q]*[ -/][^q]{95}",
    "([a-zA-Z ]*[aeiou][a-zA-Z ]{30})|([a-zA-Z ]*[stnr][a-zA-Z ]{31})|([a-zA-Z ]*[lcdm][a-zA-Z ]{32})",
    r"(?:(?:[a-z]{1,30}|[A-Z]{1,30}| {1,3}|[0-9]{1,30}|[.,;]{1,5}|[-(){}]{1,9}|\n{1,3}){1,40}z){1,40}",
    r"(\p{L}{1,30}\p{N}{0,30}\p{P}{0,9}\s{0,5}){1,300}",
]
"""Regular expressions whose first mask is cheap, and which the compiler gives up a few tokens later."""


@pytest.fixture(scope="module")
def worker(real_gguf: Path) -> GrammarWorker:
    tokenizer = load_tokenizer(str(real_gguf))
    assert tokenizer.eos_token_id is not None
    setup = GrammarSetup(tokenizer.backend.to_str(), tokenizer.num_ids, (tokenizer.eos_token_id,))
    return GrammarWorker(setup)


@pytest.mark.parametrize("pattern", NEVER_ENDING)
def test_a_grammar_that_fails_after_some_tokens_is_refused_before(worker: GrammarWorker, pattern: str) -> None:
    verdict = worker.compile(GrammarJob(StructuredOutput("regex", pattern)))
    assert "more work per token" in verdict.error


@pytest.mark.parametrize("reasoning", [None, Reasoning("<think>", "</think>")])
def test_ten_thousand_labels_are_a_grammar_of_a_few_mebibytes(
    worker: GrammarWorker, reasoning: Reasoning | None
) -> None:
    labels = [f"label {number * 7919 % 100_000}" for number in range(10_000)]
    verdict = worker.compile(GrammarJob(StructuredOutput("choice", labels), reasoning))
    assert not verdict.error
    assert 0 < verdict.num_bytes < 8 << 20
    signs = [chr(0x4E00 + number) for number in range(10_000)]
    assert not worker.compile(GrammarJob(StructuredOutput("choice", signs))).error


def test_a_grammar_that_takes_too_much_memory_is_refused_every_time(
    worker: GrammarWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jserve.text.grammars.grammar_worker.MAX_COMPILED_BYTES", 1 << 20)
    growing = StructuredOutput("regex", "[^q]*[aeiou][^q]{14}|[^q]*[stnrc][^q]{14}")
    for _ in range(3):
        error = worker.compile(GrammarJob(growing)).error
        assert "MiB of memory" in error
        assert "simpler" in error


def test_usual_grammars_take_a_part_of_what_is_allowed(worker: GrammarWorker) -> None:
    members = {f"f{number}": {"enum": [f"v{number}_{value}" for value in range(50)]} for number in range(60)}
    schema: dict[str, Any] = {"type": "object", "properties": members, "required": list(members)}
    for spec in (StructuredOutput("json", schema), StructuredOutput("json_object"), StructuredOutput("regex", ".*")):
        verdict = worker.compile(GrammarJob(spec))
        assert not verdict.error
        assert verdict.num_bytes < MAX_COMPILED_BYTES / 4


@pytest.mark.parametrize(
    "spec",
    [
        StructuredOutput("json", {"type": "string", "pattern": "(?=a)b"}),
        StructuredOutput("json", {"type": "string", "pattern": r"\bfoo\b"}),
        StructuredOutput("json", {"enum": []}),
        StructuredOutput("regex", "(a"),
        StructuredOutput("grammar", "root ::= missing"),
        StructuredOutput("grammar", 'start: a\na: "b"\nstart2 c: x'),
    ],
)
def test_no_message_shows_the_grammar_that_was_made_of_a_request(worker: GrammarWorker, spec: StructuredOutput) -> None:
    error = worker.compile(GrammarJob(spec)).error
    assert error
    for inner in ("%json", "x-guidance", " | start", "<state", "verbose", "failed to compile JSON"):
        assert inner not in error
