"""Compiles what is left while requests are served, and gives way to them.

One program at a time, in threads of a low priority. Next is the program whose lack has cost the steps of the
running load most. While steps are due the compiler rests after each program, for as long as keeps its share of the time
bounded: requests go first, and under a load that never ends all programs come nevertheless.
"""

import logging
import threading
import time
from collections.abc import Callable

from jserve.runtime.compile_threads import CompileThreads
from jserve.runtime.program_table import ProgramTable

__all__ = ["CompileBehind", "Load"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, detail)."""

SHARE = 0.25
"""The share of the time that compiling gets while steps are due. Where the threads that compile are known, and have the
lower priority, their time on a core counts.
"""
QUIET_S = 1.0
"""From when on nothing to do counts as idle: between two requests of one client there is always a moment."""
GLANCE_S = 0.1


class Load:
    """Whether steps are due. Told by the engine's loop, asked by what works behind it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_since: float | None = -QUIET_S

    def tell(self, *, is_due: bool) -> None:
        """Whether there is something to schedule or in flight, now."""
        if is_due:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = self._clock()

    @property
    def is_quiet(self) -> bool:
        """Nothing has been due for a while."""
        since = self._quiet_since
        return since is not None and self._clock() - since >= QUIET_S


class CompileBehind:
    """Brings the missing programs of a table, one after the other."""

    def __init__(
        self,
        table: ProgramTable,
        load: Load,
        threads: CompileThreads,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._load = load
        self._threads = threads
        self._progress = progress
        self._clock = clock
        self._sleep = sleep

    def start(self) -> threading.Thread:
        """Work in a thread of its own, while the runner works."""
        thread = threading.Thread(target=self.work, name="compile-behind", daemon=True)
        thread.start()
        return thread

    def work(self) -> None:
        """Until no program is missing but those that cannot be compiled."""
        table = self._table
        self._threads.lower_priority()
        total, done = len(table.missing()), 0
        with table.noting_lacks():
            while (program := table.next_missing()) is not None:
                self._progress("background-compile", done, total, program.name)
                start, spent = self._clock(), self._threads.seconds()
                try:
                    table.add(program)
                except Exception:
                    logger.exception("could not compile %s; steps of this size use a larger program", program.name)
                done += 1
                took = self._clock() - start
                self._rest(took, took if spent is None else (self._threads.seconds() or 0.0) - spent)
        self._progress("background-compile", done, max(done, total), "")
        table.tidy_store()

    def _rest(self, took: float, worked: float) -> None:
        """Leave the rest of the time to steps, unless none are due. `took` and `worked` are seconds: of the clock, and
        those that the steps could have had.
        """
        until = self._clock() + worked / SHARE - took
        while self._clock() < until and not self._load.is_quiet:
            self._sleep(GLANCE_S)
