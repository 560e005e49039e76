"""The engine process: takes requests off the socket, drives the core, and reports how the start goes."""

import gc
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from jserve.config import EngineConfig
from jserve.engine.core import make_core
from jserve.engine.interface import Core
from jserve.ipc import EngineSocket
from jserve.progress import StartupBars
from jserve.protocol import (
    Abort,
    EngineCompiled,
    EngineProgress,
    EngineReady,
    ModelFacts,
    Request,
    Shutdown,
    StepFrame,
    TokenDelta,
)
from jserve.runtime.compile_behind import CompileBehind, Load
from jserve.runtime.platform import choose_platform
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.start import describe, start_runner, stored_programs

logger = logging.getLogger(__name__)

_GC_THRESHOLD = (10_000, 10, 10)
"""Thresholds of the garbage collector. The loop's objects are freed by their counts; a step of 256 rows makes 500 of
them, so that the usual threshold of 700 looks for cycles in every other step.
"""
_PROGRAM_LOG_S = 10.0
"""Between lines about the programs that are compiled behind."""
_HEARTBEAT_S = 0.5
"""Longest silence while steps are made."""


@dataclass(slots=True)
class EngineProcess:
    """Serves one API process over one socket until it says stop or goes away."""

    core: Core
    connection: EngineSocket
    load: Load = field(default_factory=Load)
    is_stopping: bool = False
    _num_deferred_told: int = 0
    _sent_at: float = 0.0

    def run(self) -> None:
        """The loop. Sleeps in the kernel while there is nothing to do."""
        while not self.is_stopping:
            self.turn()

    def turn(self) -> None:
        """Take in what has arrived, make one step, send what it yields."""
        is_idle = self.core.is_idle
        self.load.tell(is_due=not is_idle)
        refused = self._receive(block=is_idle)
        if self.connection.is_closed:
            return  # Nobody reads what would be sent.
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

    def __init__(self, connection: EngineSocket, table: ProgramTable) -> None:
        self._connection = connection
        self._table = table
        self._logged_at = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        counts = self._table.count()
        with suppress(OSError):  # the loop finds out by itself that the server is gone
            self._connection.send(EngineCompiled(self._table.take_news(), counts))
        if done == total:
            settle()
            logger.info(
                "compiled %d of %d programs, %d could not be compiled", counts.ready, counts.total, counts.failed
            )
        elif time.monotonic() - self._logged_at > _PROGRAM_LOG_S:
            logger.info("compiled %d of %d programs, next is %s", counts.ready, counts.total, detail)
            self._logged_at = time.monotonic()


def serve(config: EngineConfig, connection: EngineSocket) -> None:
    """Start an engine and serve until the peer stops it. Raises StartupError where it cannot start."""
    clock = time.perf_counter()
    choose_platform(config.gpu_memory_utilization, stored_programs(config))
    report = ProgressReport(connection)
    started = start_runner(config, report, early=True)
    core = make_core(started, enable_prefix_caching=config.enable_prefix_caching, speculation=config.speculative_config)
    core.prepare()
    report.ready()
    settle()
    shape, table = started.shape, started.runner.table
    seconds = {**started.seconds, "total": time.perf_counter() - clock}
    connection.send(EngineCompiled(table.take_news(), table.count()))
    connection.send(
        EngineReady(
            model=ModelFacts(shape.max_model_len, shape.vocab_size, tuple(sorted(started.eos_token_ids))),
            max_num_seqs=shape.max_num_seqs,
            page_size=shape.page_size,
            num_pages=shape.num_pages,
            device=started.device,
            startup_seconds=seconds,
            info=describe(started),
        )
    )
    with core.compiles.watch():
        load = Load()
        CompileBehind(table, load, started.compile_threads, ProgramReport(connection, table)).start()
        EngineProcess(core, connection, load).run()


def settle() -> None:
    """Take what is there out of garbage collection: it stays to the end, and walking through it would hold the
    loop up for a tenth of a second now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
