"""The loop, and the process around it. The only file that knows both schedule/ and runtime/.

The life of a request here:
    1. `receive` takes it off the socket, `Scheduler.add` queues it, once its grammar is compiled if it has one.
    2. `Scheduler.schedule` gives it a slot, pages and a share of a step's tokens.
    3. `Runner.dispatch` starts the step and returns; the step before is still running.
    4. `Runner.collect` waits for the step before; `Scheduler.update` appends its tokens. Where they decide
       what may come next, the masks that follow from them go to the sampler of the step that was dispatched.
    5. One frame per step carries all new tokens home.
Steps 2 to 5 repeat until a stop token, the length, or an abort ends it; its pages are free at once.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from llguidance import LLMatcher

from jserve.config import EngineConfig
from jserve.constrain.compiler import GrammarCompiler
from jserve.constrain.deferred import DeferredRequests
from jserve.constrain.masks import MaskMaker, MaskRow
from jserve.constrain.row import RowConstraint
from jserve.engine.encoder_core import EncoderCore
from jserve.errors import StartupError
from jserve.ipc import EngineSocket
from jserve.log import set_up_logging
from jserve.progress import StartupBars
from jserve.protocol import (
    Abort,
    EngineCompiled,
    EngineFatal,
    EngineProgress,
    EngineReady,
    EngineStats,
    FromEngine,
    Request,
    Shutdown,
    StepFrame,
    TokenDelta,
)
from jserve.runtime.compile_ahead import bake
from jserve.runtime.compiles import CompileCounter
from jserve.runtime.encoder_runner import EncoderRunner
from jserve.runtime.platform import choose_platform
from jserve.runtime.runner import Launched, Runner
from jserve.runtime.shapes import CPU_STEP_OVERHEAD, GPU_STEP_OVERHEAD, EngineShape
from jserve.runtime.start import Started, compile_behind, describe, start_runner
from jserve.schedule.limits import EMBEDS
from jserve.schedule.scheduler import Scheduler
from jserve.schedule.sequence import Status
from jserve.text.load import load_tokenizer

logger = logging.getLogger(__name__)

_GRAMMAR_WAIT_S = 0.005
"""How long the loop sleeps at most, and so leaves what arrives unread, while all requests wait for grammars."""
_GC_THRESHOLD = (10_000, 10, 10)
"""Of the garbage collector. The loop's objects are freed by their counts; a step of 256 rows makes 500 of them, so
that the usual threshold of 700 looks for cycles in every other step.
"""
_PROGRAM_LOG_S = 10.0
"""Between lines about the programs that are compiled behind."""
_HEARTBEAT_S = 0.5
"""Longest silence while steps are made."""


class EngineCore:
    """Scheduler and runner, one step ahead of each other. Driven from one thread."""

    def __init__(self, started: Started, *, enable_prefix_caching: bool = True) -> None:
        shape = started.shape
        assert isinstance(started.runner, Runner)
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
            step_overhead=CPU_STEP_OVERHEAD if started.device == "cpu" else GPU_STEP_OVERHEAD,
        )
        self.compiles = CompileCounter()
        self._embeds = started.embedder is not None
        self._eos_token_ids = started.eos_token_ids
        self.grammars = GrammarCompiler(
            lambda: load_tokenizer(started.model).backend.to_str(), shape.vocab_size, started.eos_token_ids
        )
        self._deferred = DeferredRequests(self.grammars)
        self._masks = MaskMaker(shape.vocab_size)
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

    def add(self, request: Request) -> TokenDelta | None:
        """Queue a request; the final delta of one that can never run, else None."""
        if self._embeds and not request.pooling:
            return TokenDelta(request.request_id, [], finish_reason="error", error=EMBEDS)
        if request.request_id in self._deferred:
            error = f"request id {request.request_id!r} is in use; send another one"
            return TokenDelta(request.request_id, [], finish_reason="error", error=error)
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
        """Dispatch the next step, then bring the one before it home."""
        deltas = self._queue_deferred() if self._deferred else []
        plan = self.scheduler.schedule()
        launched = self.runner.dispatch(plan) if plan else None
        if self._in_flight is not None:
            tokens = self.runner.collect(self._in_flight)
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
                refused.append(TokenDelta(request.request_id, [], finish_reason="error", error=outcome))
            else:
                refused.append(self._queue(request, outcome))
        return [delta for delta in refused if delta is not None]

    def _sample_masked(self, launched: Launched, deltas: list[TokenDelta]) -> Launched:
        """Compute the masks of a step while the device computes its logits, and start its sampler.

        All earlier tokens are home. A row without a next token ends with an error, added to `deltas`.
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
        deltas += [self.scheduler.fail(of_mask[place].sequence, error) for place, error in failed.items()]
        return self.runner.sample(launched, masks)


def make_core(started: Started, *, enable_prefix_caching: bool = True) -> EngineCore | EncoderCore:
    """What drives the model that was started."""
    if isinstance(started.runner, EncoderRunner):
        return EncoderCore(started)
    return EngineCore(started, enable_prefix_caching=enable_prefix_caching)


@dataclass(slots=True)
class EngineProcess:
    """Serves one API process over one socket until it says stop or goes away."""

    core: EngineCore | EncoderCore
    connection: EngineSocket
    is_stopping: bool = False
    _num_deferred_told: int = 0
    _sent_at: float = 0.0

    def run(self) -> None:
        """The loop. Sleeps in the kernel while there is nothing to do."""
        while not self.is_stopping:
            self.turn()

    def turn(self) -> None:
        """Take in what has arrived, make one step, send what came home."""
        refused = self._receive(block=self.core.is_idle)
        deltas = self.core.step() if not self.core.is_idle else []
        num_deferred = self.core.num_deferred
        # A long prompt takes many steps that yield nothing; the other side wants to hear that they are made.
        is_news = refused or deltas or self.core.is_idle or num_deferred != self._num_deferred_told
        if is_news or time.monotonic() - self._sent_at > _HEARTBEAT_S:
            self.connection.send(StepFrame(refused + deltas, self.core.stats()))
            self._num_deferred_told = num_deferred
            self._sent_at = time.monotonic()

    def _receive(self, *, block: bool) -> list[TokenDelta]:
        """Take in what has arrived; returns the final deltas of requests that were refused."""
        refused = []
        for message in self.connection.receive(block=block):
            match message:
                case Request():
                    delta = self.core.add(message)
                    if delta is not None:
                        refused.append(delta)
                case Abort():
                    self.core.abort(message.request_ids)
                case Shutdown():
                    self.is_stopping = True
        self.is_stopping |= self.connection.is_closed
        return refused


class ProgressReport:
    """Sends the start's progress to the API process and shows it on standard error."""

    def __init__(self, connection: EngineSocket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._bars = StartupBars()
        self._is_ready = False

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        with self._lock:
            self._bars.show(phase, done, total, detail)
            if not self._is_ready:
                self._connection.send(EngineProgress(phase, done, total, detail))

    def ready(self) -> None:
        """The start is over."""
        with self._lock:
            self._is_ready = True
            self._bars.close()


class ProgramReport:
    """Tells the API process which programs there are and how many are to come, as they are compiled behind."""

    def __init__(self, connection: EngineSocket, runner: Runner | EncoderRunner) -> None:
        self._connection = connection
        self._runner = runner
        self._logged_at = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        counts = self._runner.count_programs()
        with suppress(OSError):  # the loop finds out by itself that the server is gone
            self._connection.send(EngineCompiled(self._runner.take_news(), counts))
        if done == total:
            settle()
            logger.info(
                "%d of %d programs are there, %d could not be compiled", counts.ready, counts.total, counts.failed
            )
        elif time.monotonic() - self._logged_at > _PROGRAM_LOG_S:
            logger.info("%d of %d programs are there, next is %s", counts.ready, counts.total, detail)
            self._logged_at = time.monotonic()


def serve(config: EngineConfig, connection: EngineSocket) -> None:
    """Start an engine and serve until the peer stops it. Raises StartupError where it cannot start."""
    clock = time.perf_counter()
    choose_platform(config.gpu_memory_utilization)
    report = ProgressReport(connection)
    started = start_runner(config, report, early=True)
    core = make_core(started, enable_prefix_caching=config.enable_prefix_caching)
    if isinstance(core, EngineCore):
        core.grammars.prepare()
    report.ready()
    settle()
    shape = started.shape
    seconds = {**started.seconds, "total": time.perf_counter() - clock}
    connection.send(EngineCompiled(started.runner.take_news(), started.runner.count_programs()))
    connection.send(
        EngineReady(
            max_model_len=shape.max_model_len,
            max_num_seqs=shape.max_num_seqs,
            page_size=shape.page_size,
            num_pages=shape.num_pages,
            vocab_size=shape.vocab_size,
            eos_token_ids=sorted(started.eos_token_ids),
            device=started.device,
            startup_seconds=seconds,
            info=describe(started),
        )
    )
    with core.compiles.watch():
        compile_behind(started.runner, ProgramReport(connection, started.runner))
        EngineProcess(core, connection).run()


def settle() -> None:
    """Take what is there out of garbage collection: it stays to the end, and walking through it would hold the
    loop up for a tenth of a second now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)


def main() -> int:
    """Entry of the engine process: `python -m jserve.engine.process --fd N`, an `EngineConfig` as JSON on stdin."""
    parser = argparse.ArgumentParser(prog="jserve.engine.process", description="The engine process; jserve starts it.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--fd", type=int, help="inherited socket to the API process")
    work.add_argument("--bake", type=Path, metavar="DIR", help="compile all programs into this folder, and leave")
    options = parser.parse_args()
    if options.bake is not None:
        return _bake(options.bake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    set_up_logging(config.log_level, config.log_format)
    connection = EngineSocket(socket.socket(fileno=options.fd))
    try:
        serve(config, connection)
    except StartupError as error:
        return _last_words(connection, EngineFatal(str(error), retry=False))
    except (BrokenPipeError, ConnectionError):
        return 0
    except Exception as error:
        logger.exception("the engine failed")
        return _last_words(connection, EngineFatal(f"{type(error).__name__}: {error}", retry=True))
    return 0


def _bake(folder: Path) -> int:
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    set_up_logging(config.log_level, config.log_format)
    choose_platform(config.gpu_memory_utilization)
    bars = StartupBars()
    try:
        bake(config, folder, bars.show)
    except StartupError as error:
        print(f"jserve: {error}", file=sys.stderr)
        return 1
    finally:
        bars.close()
    return 0


def _last_words(connection: EngineSocket, message: FromEngine) -> int:
    try:
        connection.send(message)
    except OSError:
        logger.error("%s", message)
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # The thread that compiles behind may be deep inside XLA, which does not survive the interpreter's end.
    os._exit(code)
