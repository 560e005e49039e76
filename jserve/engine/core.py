"""The loop. The only file that knows both schedule/ and runtime/.

The life of a request here:
    1. `receive` takes it off the socket, `Scheduler.add` queues it, once its grammar is compiled if it has one.
    2. `Scheduler.schedule` gives it a slot, pages and a share of a step's tokens.
    3. `Runner.dispatch` starts the step and returns; the step before is still running.
    4. `Runner.collect` waits for the step before; `Scheduler.update` appends its tokens. Where they decide
       what may come next, the masks that follow from them go to the sampler of the step that was dispatched.
    5. One frame per step carries all new tokens back.
Steps 2 to 5 repeat until a stop token, the length, or an abort ends it; its pages are free at once.
"""

import time
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from jserve.config.speculation import SpeculativeConfig
from jserve.constrain.compiler import GrammarCompiler, GrammarTokenizer
from jserve.constrain.deferred import DeferredRequests
from jserve.constrain.masks import MaskMaker, MaskRow
from jserve.constrain.row import RowConstraint
from jserve.engine.encoder_core import EncoderCore
from jserve.engine.interface import Core
from jserve.errors import ConfigError
from jserve.protocol import (
    EngineStats,
    Request,
    TokenDelta,
)
from jserve.runtime.compiles import CompileCounter
from jserve.runtime.encoder_runner import EncoderRunner
from jserve.runtime.runner import Launched, Runner
from jserve.runtime.shapes import CPU_STEP_OVERHEAD, GPU_STEP_OVERHEAD, EngineShape
from jserve.runtime.start import Started
from jserve.schedule.deltas import refusal
from jserve.schedule.drafts import Drafter
from jserve.schedule.limits import NO_TEXT
from jserve.schedule.plan import StepPlan, StepTokens
from jserve.schedule.scheduler import Scheduler
from jserve.schedule.sequence import Status
from jserve.text.load import load_tokenizer

_GRAMMAR_WAIT_S = 0.005
"""How long the loop sleeps at most, and so leaves what arrives unread, while all requests wait for grammars."""


class EngineCore:
    """Scheduler and runner, one step ahead of each other. Driven from one thread."""

    def __init__(
        self,
        started: Started[Runner],
        *,
        enable_prefix_caching: bool = True,
        speculation: SpeculativeConfig | None = None,
    ) -> None:
        shape = started.shape
        self.runner = started.runner
        self.shape: EngineShape = shape
        self.scheduler = Scheduler(
            num_pages=shape.num_pages,
            page_size=shape.page_size,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            max_model_len=shape.max_model_len,
            eos_token_ids=started.eos_token_ids,
            enable_prefix_caching=enable_prefix_caching,
            windows=shape.windows,
            step_sizes=self.runner.mixed_sizes,
            num_snapshots=shape.num_snapshots,
            drafter=_make_drafter(speculation, shape),
            step_overhead=CPU_STEP_OVERHEAD if started.device == "cpu" else GPU_STEP_OVERHEAD,
        )
        self.compiles = CompileCounter()
        self._generates = started.generates
        self._eos_token_ids = started.eos_token_ids
        self._not_finite = started.not_finite
        self.grammars = GrammarCompiler(
            lambda: _grammar_tokenizer(started.model), shape.vocab_size, started.eos_token_ids
        )
        self._deferred = DeferredRequests(self.grammars)
        self._masks = MaskMaker(shape.vocab_size, lambda: self.grammars.vocab_size)
        self._in_flight: Launched | None = None
        self._num_steps = 0
        self._padded_tokens = 0
        self._last_step_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Nothing to schedule and nothing in flight."""
        return self._in_flight is None and self.scheduler.is_idle and not self._deferred

    @property
    def num_deferred(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._deferred)

    def prepare(self) -> None:
        """Read the tokenizer for grammars, in a thread."""
        self.grammars.prepare()

    def add(self, request: Request) -> TokenDelta | None:
        """Queue a request; the final delta of one that can never run, else None."""
        if not self._generates and not request.pooling:
            return refusal(request.request_id, NO_TEXT)
        if request.request_id in self._deferred:
            error = f"request id {request.request_id!r} is in use; send another one"
            return refusal(request.request_id, error)
        if not request.sampling.grammar:
            return self._queue(request, None)
        refused = self.scheduler.refuse(request)
        if refused is None:
            self._deferred.add(request)
        return refused

    def abort(self, request_ids: list[str]) -> None:
        """Stop requests and free what they hold."""
        self.scheduler.abort(request_ids)
        self._deferred.abort(request_ids)

    def step(self) -> list[TokenDelta]:
        """Dispatch the next step, then read the one before it back."""
        deltas = self._queue_deferred() if self._deferred else []
        plan = self.scheduler.schedule()
        launched = self.runner.dispatch(plan) if plan else None
        if self._in_flight is not None:
            tokens = self.runner.collect(self._in_flight)
            if tokens.not_finite:
                deltas += self._fail_not_finite(self._in_flight.plan, tokens)
            deltas += self.scheduler.update(self._in_flight.plan, tokens)
        if launched is not None and launched.unsampled is not None:
            launched = self._sample_masked(launched, deltas)
        self._in_flight = launched
        if launched is not None:
            self._num_steps += 1
            self._padded_tokens = launched.bucket.tokens
            self._last_step_at = time.time()
        return deltas

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        return self.scheduler.stats(
            num_steps=self._num_steps,
            padded_tokens=self._padded_tokens,
            compiles_after_ready=self.compiles.count,
            last_step_at=self._last_step_at,
            num_deferred=self.num_deferred,
        )

    def _queue(self, request: Request, matcher: LLMatcher | None) -> TokenDelta | None:
        constraint = None
        if request.sampling.needs_masks:
            constraint = RowConstraint(request.sampling, self.shape.vocab_size, self._eos_token_ids, matcher)
        return self.scheduler.add(request, constraint)

    def _queue_deferred(self) -> list[TokenDelta]:
        """Queue the requests whose grammar is there; the final deltas of those that have none."""
        is_alone = self._in_flight is None and self.scheduler.is_idle
        refused: list[TokenDelta | None] = []
        for request, outcome in self._deferred.take_ready(_GRAMMAR_WAIT_S if is_alone else 0.0):
            if isinstance(outcome, str):
                refused.append(refusal(request.request_id, outcome))
            else:
                refused.append(self._queue(request, outcome))
        return [delta for delta in refused if delta is not None]

    def _fail_not_finite(self, plan: StepPlan, tokens: StepTokens) -> list[TokenDelta]:
        """End the sequences for which the model computed NaN or infinity."""
        chunks = [plan.chunks[row] for row in dict.fromkeys(tokens.not_finite)]
        sequences = [chunk.sequence for chunk in chunks if chunk.draft_token < 0]
        failed = [sequence for sequence in sequences if sequence.status is not Status.FINISHED]
        return [self.scheduler.fail(sequence, self._not_finite, is_refusal=False) for sequence in failed]

    def _sample_masked(self, launched: Launched, deltas: list[TokenDelta]) -> Launched:
        """Compute the masks of a step while the device computes its logits, and start its sampler.

        All earlier tokens have been read back. A row without a next token ends with an error, added to `deltas`.
        """
        assert launched.unsampled is not None
        of_mask = [launched.plan.chunks[row] for row in launched.unsampled.mask_rows if row < len(launched.plan.chunks)]
        rows = []
        for place, chunk in enumerate(of_mask):
            sequence = chunk.sequence
            constraint = sequence.constraint
            if chunk.samples and constraint is not None and sequence.status is not Status.FINISHED:
                new_tokens = sequence.token_ids[sequence.num_prompt + constraint.num_seen :].tolist()
                rows.append(MaskRow(place, constraint, new_tokens))
        masks, failed = self._masks.fill(rows, launched.unsampled.num_masks)
        deltas += [
            self.scheduler.fail(of_mask[place].sequence, error, is_refusal=True) for place, error in failed.items()
        ]
        return self.runner.sample(launched, masks)


def _grammar_tokenizer(model: Path) -> GrammarTokenizer:
    tokenizer = load_tokenizer(model)
    return GrammarTokenizer(tokenizer.backend.to_str(), tokenizer.num_ids)


def _make_drafter(speculation: SpeculativeConfig | None, shape: EngineShape) -> Drafter | None:
    if speculation is None:
        return None
    if shape.num_snapshots is not None:
        raise ConfigError(
            "--speculative-config is not supported for this model: its layers keep states, which cannot be taken back "
            "to before a rejected token; leave the option away"
        )
    return Drafter(speculation)


def make_core(
    started: Started[Any], *, enable_prefix_caching: bool = True, speculation: SpeculativeConfig | None = None
) -> Core:
    """What drives the model that was started."""
    if isinstance(started.runner, EncoderRunner):
        return EncoderCore(started)
    return EngineCore(started, enable_prefix_caching=enable_prefix_caching, speculation=speculation)
