"""A process that compiles grammars, and can be lost: `python -m jserve.text.grammars.grammar_worker FD`.

A grammar is a program for the compiler. llguidance limits its work, but by counting, not by the clock, and what
comes before it (conversions, schemas) is limited by nothing; a process with an end to its time and memory is.
"""

import re
import resource
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from llguidance import LLMatcher, LLTokenizer

from jserve.constrain.limits import MAX_COMPILED_BYTES, parser_limits
from jserve.errors import RequestError
from jserve.text.grammars.grammar import Marker, after_reasoning
from jserve.text.grammars.structured import StructuredOutput, grammar_of
from jserve.text.grammars.trial import HeapMeter, try_out
from jserve.text.templates.job_frames import serve_jobs

MEMORY_LIMIT = 4 << 30
"""Bytes of address space. The interpreter and a vocabulary of 150,000 tokens need about a tenth."""
STACK_BYTES = 1 << 20
"""Half of what Rust gives its threads. llguidance recurses over a grammar, and what is too deep ends the process."""
_MAX_ERROR_CHARS = 600


@dataclass(frozen=True, slots=True)
class GrammarSetup:
    """The first frame: the model's tokenizer as `tokenizers` writes it, and the model's end tokens.

    `vocab_size` counts the tokenizer's tokens or the model's rows, whichever are more.
    """

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What stands around the reasoning that comes before a structured answer (`grammar.after_reasoning`)."""

    begin: Marker
    end: Marker
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class GrammarJob:
    """What is to be compiled: a form of output or a grammar, perhaps after reasoning."""

    spec: StructuredOutput | str
    reasoning: Reasoning | None = None


class Verdict(msgspec.Struct, frozen=True):
    """A grammar that compiles and can be run, or why there is none. `is_final`: a second try would end alike.

    `num_bytes` is the memory of the compiled grammar, as far as the trial has made it grow.
    """

    grammar: str = ""
    error: str = ""
    is_final: bool = True
    num_bytes: int = 0


class GrammarWorker:
    """Compiles with the vocabulary of one model, as the engine will."""

    def __init__(self, setup: GrammarSetup) -> None:
        self._vocabulary: LLTokenizer | None = None
        self._vocab_size = setup.vocab_size
        self._end_ids = frozenset(setup.eos_token_ids)
        self._heap = HeapMeter()
        self._unusable = "this model names no end-of-sequence token, which a grammar needs"
        if setup.eos_token_ids:
            try:
                self._vocabulary = LLTokenizer(
                    setup.tokenizer_json, n_vocab=setup.vocab_size, eos_token=list(setup.eos_token_ids)
                )
            except Exception as error:
                self._unusable = (
                    f"grammars cannot be used with this model's tokenizer ({type(error).__name__}: {error})"
                )

    def compile(self, job: GrammarJob) -> Verdict:
        """The verdict on a job; whatever goes wrong is the job's fault."""
        before = self._heap.live_bytes()
        matchers = []  # Alive until they are measured.
        try:
            grammar = job.spec if isinstance(job.spec, str) else grammar_of(job.spec)
            matchers.append(self._tried(grammar))
            if job.reasoning is not None:
                reasoning = job.reasoning
                grammar = after_reasoning(grammar, reasoning.begin, reasoning.end, is_open=reasoning.is_open)
                matchers.append(self._tried(grammar))
        except RequestError as refused:
            return Verdict(error=_printable(str(refused)))
        except MemoryError:
            return Verdict(error=f"needs more than {MEMORY_LIMIT >> 30} GiB of memory")
        except Exception as broken:  # The compiler gave up in a way that it does not document.
            return Verdict(error=_printable(f"cannot be compiled ({type(broken).__name__}: {broken})"))
        grown = max(0, self._heap.live_bytes() - before)
        if grown > MAX_COMPILED_BYTES * len(matchers):
            return Verdict(
                error=f"needs {grown / len(matchers) / 2**20:.0f} MiB of memory and {MAX_COMPILED_BYTES >> 20} are "
                "allowed; make it simpler"
            )
        return Verdict(grammar, num_bytes=grown)

    def _tried(self, grammar: str) -> LLMatcher:
        """The matcher of a grammar that runs. Raises RequestError."""
        if self._vocabulary is None:
            raise RequestError(self._unusable)
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=parser_limits())
        if matcher.is_error():
            raise RequestError(_reason(matcher.get_error()))
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError(_reason(matcher.get_error()))
        if not any(mask):
            raise RequestError("no text satisfies it")
        if error := try_out(matcher, self._vocab_size, self._end_ids):
            raise RequestError(_reason(error))
        return matcher


def _reason(message: str) -> str:
    """The compiler's message in words that fit here, without the text of the grammar, which is made here."""
    message = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    message = re.split(r"\n<(?:state|non-verbose)|\n +\d+ \| ", message)[0].strip()
    if "oneOf constraints are not supported" in message:
        return "`oneOf` can be enforced only where its branches exclude each other visibly; use `anyOf`"
    if "NoExtension" in message:
        return "no text satisfies it"
    if any(sign in message for sign in _TOO_COMPLEX):
        return "is too complex: it needs more work per token than the compiler allows"
    return message


_TOO_COMPLEX = ("fuel", "ParserTooComplex", "LexerTooComplex", "too many", "Current row has", "too large")
"""In messages about llguidance's limits."""


def _printable(message: str) -> str:
    message = message.encode(errors="replace").decode()
    return message if len(message) <= _MAX_ERROR_CHARS else message[:_MAX_ERROR_CHARS] + "…"


def _start(setup: GrammarSetup) -> Callable[[GrammarJob], bytes]:
    worker = GrammarWorker(setup)
    return lambda job: msgspec.msgpack.encode(worker.compile(job))


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What passes here must also pass in the engine's threads, which have less stack than a main thread.
    threading.stack_size(STACK_BYTES)
    work = threading.Thread(target=serve_jobs, args=(connection, _start))
    work.start()
    work.join()


if __name__ == "__main__":
    main()
