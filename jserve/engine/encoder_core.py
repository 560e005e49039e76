"""The engine of an encoder: texts in, vectors out, one step ahead. To the loop around it, it is like `EngineCore`.

The life of a request here:
    1. `add` queues it.
    2. `TextQueue` puts it into a step with others that are padded to the same length.
    3. `EncoderRunner.dispatch` starts the step and returns; the step before is still running.
    4. `EncoderRunner.collect` waits for the step before; each vector is a request's only delta.
"""

import time

import numpy as np

from jserve.protocol import EngineStats, Request, TokenDelta
from jserve.runtime.compiles import CompileCounter
from jserve.runtime.encoder_runner import EncoderRunner, LaunchedTexts
from jserve.runtime.start import Started
from jserve.schedule.deltas import error_delta
from jserve.schedule.embedding import pooled_vector
from jserve.schedule.texts import TextQueue


class EncoderCore:
    """Queue and runner, one step ahead of each other. Driven from one thread."""

    def __init__(self, started: Started[EncoderRunner]) -> None:
        self.runner = started.runner
        self.shape = started.shape
        self._not_finite = started.not_finite
        self.compiles = CompileCounter()
        self._queue = TextQueue(lengths=self.runner.lengths, max_model_len=self.shape.max_model_len)
        self._in_flight: tuple[LaunchedTexts, float] | None = None
        self._num_steps = 0
        self._prompt_tokens = 0
        self._step_tokens = 0
        self._padded_tokens = 0
        self._last_step_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return self._in_flight is None and self._queue.is_empty

    @property
    def num_deferred(self) -> int:
        """No request waits for a grammar."""
        return 0

    def prepare(self) -> None:
        """Nothing: texts need no more than the start has made."""

    def add(self, request: Request) -> TokenDelta | None:
        """Queue a request; the final delta of one that can never run, else None."""
        return self._queue.add(request)

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests."""
        self._queue.abort(request_ids)

    def step(self) -> list[TokenDelta]:
        """Dispatch the next step, then read the one before it back."""
        launched = self._dispatch()
        deltas = []
        if self._in_flight is not None:
            before, started_at = self._in_flight
            for request, vector in zip(before.requests, self.runner.collect(before), strict=True):
                if self._queue.finish(request):
                    deltas.append(self._delta(request, vector, started_at))
        self._in_flight = launched
        return deltas

    def stats(self) -> EngineStats:
        """Gauges and counters as of now. There are no pages, and nothing is cached."""
        return EngineStats(
            num_running=self._queue.num_open - self._queue.num_waiting,
            num_waiting=self._queue.num_waiting,
            num_steps=self._num_steps,
            prompt_tokens_computed=self._prompt_tokens,
            step_tokens=self._step_tokens,
            padded_tokens=self._padded_tokens,
            compiles_after_ready=self.compiles.count,
            last_step_at=self._last_step_at,
        )

    def _dispatch(self) -> tuple[LaunchedTexts, float] | None:
        waiting = self._queue.next_length()
        if waiting is None:
            return None
        length, count = waiting
        bucket = self.runner.choose(length, count)
        requests = self._queue.take(length, bucket.texts)
        self._num_steps += 1
        self._step_tokens = sum(len(request.token_ids) for request in requests)
        self._prompt_tokens += self._step_tokens
        self._padded_tokens = bucket.tokens
        self._last_step_at = time.time()
        return self.runner.dispatch(requests, bucket), self._last_step_at

    def _delta(self, request: Request, vector: bytes, started_at: float) -> TokenDelta:
        if not np.isfinite(np.frombuffer(vector, "<f4")).all():
            return error_delta(request.request_id, self._not_finite, is_refusal=False)
        embedding = pooled_vector([vector], normalizes=request.normalizes)
        return TokenDelta(request.request_id, [], finish_reason="stop", scheduled_at=started_at, embedding=embedding)
