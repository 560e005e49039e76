"""A stand-in for the engine: speaks the protocol, computes nothing, imports no jax.

It repeats the prompt: token i of a request's output is `prompt[(i + shift) % len(prompt)]`, where the shift
is 0 for greedy requests and `seed % 7` otherwise, so a test chooses the output by choosing the prompt. A
`logit_bias` of 100 forces its token. With a grammar it draws uniformly, by the seed, from what the grammar
allows, and closes strings, objects and arrays after 40 tokens. With `--quote-token T` a prompt that contains T
twice has the tokens between as its output, and then the end. With `--prompt-steps N` the first N steps of a
request give no token. With `--nan-token T` a logprob of T is NaN, and so is an embedding of a prompt that contains
it. It stands still in places that a test names, as long as a file of the test's is there. Run as
`python -m tests.fake_engine [options] --fd N`.
"""

import argparse
import math
import socket
import struct
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from jserve.config import EngineConfig
from jserve.ipc import EngineSocket
from jserve.protocol import (
    Abort,
    EngineCompiled,
    EngineFatal,
    EngineProgress,
    EngineReady,
    EngineStats,
    FinishReason,
    ModelFacts,
    ProgramCounts,
    Request,
    StepFrame,
    ToEngine,
    TokenDelta,
    TokenLogprobs,
)
from jserve.schedule.deltas import error_delta
from tests.text.grammars.grammar_walk import Vocabulary, Walker

PAGE_SIZE = 16
NUM_PAGES = 64


@dataclass
class FakeSequence:
    request: Request
    quoted: list[int]
    num_output: int = 0
    num_prompt_steps: int = 0
    walker: Walker | None = None

    def next_token(self) -> int:
        sampling = self.request.sampling
        if self.walker is not None:
            return self.walker.draw()
        for token, bias in (sampling.logit_bias or {}).items():
            if bias >= 100:
                return token
        shift = 0 if sampling.is_greedy else (sampling.seed or 0) % 7
        prompt = self.quoted or self.request.token_ids
        return prompt[(self.num_output + shift) % len(prompt)]


class FakeEngine:
    """One token per running sequence per step."""

    def __init__(self, options: argparse.Namespace, config: EngineConfig, engine_socket: EngineSocket) -> None:
        self.options = options
        self.config = config
        self.socket = engine_socket
        self.max_num_seqs = options.max_num_seqs
        self.sequences: dict[str, FakeSequence] = {}
        self.num_steps = 0
        self.num_aborts = 0

    def run(self) -> None:
        if not self._start():
            return
        while not self.socket.is_closed:
            for message in self.socket.receive(block=not self.sequences):
                if not self._handle(message):
                    return
            if self.sequences:
                time.sleep(self.options.step_ms / 1e3)
                _stand_still(self.options.steps_held_by)
                self._step()

    def _start(self) -> bool:
        for done in range(4):
            self.socket.send(EngineProgress("weights", done, 4, "layer"))
            if done == 1:
                _stand_still(self.options.load_held_by)
        if self.options.fatal:
            self.socket.send(EngineFatal(self.options.fatal, retry=self.options.fatal_may_pass))
            return False
        if self.options.exit_at_start is not None:
            sys.exit(self.options.exit_at_start)
        programs = [("step 8", "cold"), ("install bias", "cache")]
        self.socket.send(EngineCompiled(programs, ProgramCounts(ready=2, failed=1, total=9)))
        self.socket.send(
            EngineReady(
                model=ModelFacts(self.config.max_model_len or 256, self.options.vocab_size, (self.options.eos,)),
                max_num_seqs=self.max_num_seqs,
                page_size=PAGE_SIZE,
                num_pages=NUM_PAGES,
                device="fake",
                startup_seconds={"weights": 0.5},
                info={"cache_dtype": "none"},
            )
        )
        return True

    def _handle(self, message: ToEngine) -> bool:
        if isinstance(message, Request):
            quoted = self._quoted(message.token_ids)
            self.sequences[message.request_id] = FakeSequence(message, quoted, walker=self._walker(message))
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self.num_aborts += self.sequences.pop(request_id, None) is not None
            self._send([])
        else:
            return False
        return True

    def _walker(self, request: Request) -> Walker | None:
        sampling = request.sampling
        return Walker(self._vocabulary, sampling.grammar, sampling.seed or 0) if sampling.grammar else None

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        text = (Path(self.config.model) / "tokenizer.json").read_text()
        num_ids = 1 + max(Tokenizer.from_str(text).get_vocab().values())
        size = max(self.options.vocab_size, num_ids)
        return Vocabulary(LLTokenizer(text, n_vocab=size, eos_token=self.options.eos))

    def _quoted(self, prompt: list[int]) -> list[int]:
        """What the prompt tells to say, if it does."""
        token = self.options.quote_token
        if token is None or prompt.count(token) < 2:
            return []
        end = len(prompt) - 1 - prompt[::-1].index(token)
        begin = end - 1 - prompt[:end][::-1].index(token)
        return [*prompt[begin + 1 : end], self.options.eos]

    def _step(self) -> None:
        self.num_steps += 1
        running = list(self.sequences.values())[: self.max_num_seqs]
        deltas = [delta for sequence in running if (delta := self._advance(sequence)) is not None]
        self._send(deltas)

    def _send(self, deltas: list[TokenDelta]) -> None:
        stats = EngineStats(
            num_running=min(self.max_num_seqs, len(self.sequences)),
            num_waiting=max(0, len(self.sequences) - self.max_num_seqs),
            num_pages_used=len(self.sequences),
            num_pages=NUM_PAGES,
            num_steps=self.num_steps,
            num_preemptions=self.num_aborts,
            prefix_queries=100,
            prefix_hits=40,
            step_tokens=len(deltas),
            padded_tokens=max(len(deltas), 8),
            last_step_at=time.time(),
        )
        self.socket.send(StepFrame(deltas, stats))

    def _advance(self, sequence: FakeSequence) -> TokenDelta | None:
        request = sequence.request
        sequence.num_prompt_steps += 1
        if sequence.num_prompt_steps <= self.options.prompt_steps:
            return None
        if request.ends_with_prompt:
            return self._end_with_prompt(request)
        token = sequence.next_token()
        if token == self.options.stall_token:
            _stand_still(self.options.stall_held_by)
        is_first = sequence.num_output == 0
        sequence.num_output += 1
        reason, stop_reason = self._finish(sequence, token)
        if reason is not None:
            del self.sequences[request.request_id]
        if self.options.error_token == token:
            return error_delta(request.request_id, "the page was torn", is_refusal=self.options.error_refuses)
        return TokenDelta(
            request.request_id,
            [token],
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=self._logprobs(request, token),
            num_cached_tokens=min(3, len(request.token_ids)) if is_first else 0,
            scheduled_at=time.time() if is_first else 0.0,
            prompt_logprobs=self._prompt_logprobs(request) if is_first else None,
        )

    def _end_with_prompt(self, request: Request) -> TokenDelta:
        """The embedding is (last token, 100) for pooling "last", (sum of tokens, 100) for "mean", and has length 1. A
        classifier's logits are (sum of tokens / 100 + place of the second text / 10, 0).
        """
        del self.sequences[request.request_id]
        if self.options.error_token in request.token_ids:
            return error_delta(request.request_id, "the page was torn", is_refusal=self.options.error_refuses)
        first = float(request.token_ids[-1] if request.pooling == "last" else sum(request.token_ids))
        length = math.hypot(first, 100.0)
        numbers = (
            (first / length, 100.0 / length)
            if request.normalizes
            else (first / 100.0 + request.second_text / 10.0, 0.0)
        )
        return TokenDelta(
            request.request_id,
            [],
            finish_reason="stop" if request.pooling else "length",
            scheduled_at=time.time(),
            prompt_logprobs=None if request.pooling else self._prompt_logprobs(request),
            embedding=self._embedding(request, *numbers) if request.pooling else b"",
        )

    def _embedding(self, request: Request, first: float, second: float) -> bytes:
        is_nan = self.options.nan_token in request.token_ids
        size = 4 * self.options.embedding_size
        return struct.pack("<2f", math.nan if is_nan else first, second)[:size].ljust(size, b"\0")

    def _prompt_logprobs(self, request: Request) -> list[TokenLogprobs] | None:
        """A prompt's own token t is never the best: its logprob is -(t % 100) - 3, its rank 3."""
        count = request.sampling.prompt_logprobs
        if count is None:
            return None
        scores = []
        for token in request.token_ids[1:]:
            ids = [(token + step) % self.options.vocab_size for step in range(1, count + 1)]
            scores.append(TokenLogprobs(-float(token % 100) - 3, 3, ids, [-float(i + 1) for i in range(count)]))
        return scores

    def _finish(self, sequence: FakeSequence, token: int) -> tuple[FinishReason | None, int | None]:
        sampling = sequence.request.sampling
        past_min = sequence.num_output > sampling.min_tokens
        if token == self.options.eos and not sampling.ignore_eos and past_min:
            return "stop", None
        if token in sampling.stop_token_ids and past_min:
            return "stop", token
        if sampling.max_tokens is not None and sequence.num_output >= sampling.max_tokens:
            return "length", None
        return None, None

    def _logprobs(self, request: Request, token: int) -> list[TokenLogprobs] | None:
        """The sampled token is third best: -3. The best are the next two ids (-1, -2), the rest follow."""
        count = request.sampling.logprobs
        if count is None:
            return None
        chosen = [-float(token) / 10 for token in request.sampling.logprob_token_ids]
        order = [token + 1, token + 2, token, *range(token + 3, token + 21)]
        ids = [i % self.options.vocab_size for i in order][:count]
        logprob = math.nan if token == self.options.nan_token else -3.0
        return [TokenLogprobs(logprob, 3, ids, [-float(i + 1) for i in range(len(ids))], chosen)]


def _stand_still(held_by: Path | None) -> None:
    while held_by is not None and held_by.exists():
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--prompt-steps", type=int, default=0)
    parser.add_argument("--steps-held-by", type=Path, help="a file: no step is made while it is there")
    parser.add_argument(
        "--load-held-by", type=Path, help="a file: a quarter of the weights is loaded while it is there"
    )
    parser.add_argument("--vocab-size", type=int, default=400)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--stall-token", type=int)
    parser.add_argument("--stall-held-by", type=Path, help="a file: after the stall token all stops while it is there")
    parser.add_argument("--eos", type=int, default=2)
    parser.add_argument("--fatal", default="")
    parser.add_argument("--fatal-may-pass", action="store_true", help="what --fatal says might go better next time")
    parser.add_argument("--exit-at-start", type=int)
    parser.add_argument("--error-token", type=int)
    parser.add_argument("--error-refuses", action="store_true", help="the request is to blame for its error")
    parser.add_argument("--quote-token", type=int)
    parser.add_argument("--nan-token", type=int)
    parser.add_argument("--embedding-size", type=int, default=2)
    options = parser.parse_args()
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    connection = socket.socket(fileno=options.fd)
    FakeEngine(options, config, EngineSocket(connection)).run()


if __name__ == "__main__":
    main()
