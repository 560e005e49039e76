"""A benchmark made of parts, each a process with its own time limit, so that one that fails does not cost the others.

Its output is kept in a log and its figures in a file; what was not measured is named at the end, with the reason.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODULE = (sys.executable, "-m")
LEAVE_S = 10.0  # what a process gets after SIGTERM, before SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part went. `figures` are for the table; the whole is in the part's files."""

    part: str
    status: str
    """"done", "failed" or "skipped"."""
    seconds: float
    reason: str = ""
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended, or was ended at its limit."""

    code: int
    output: str
    timed_out: bool


@dataclass(slots=True)
class Visit:
    """Where results go, how large things are, and until when."""

    folder: Path
    tiny: bool
    model: Path
    deadline: float
    environment: Mapping[str, str] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def run(self, name: str, command: Sequence[str], limit: float, **environment: str) -> Finished:
        """Run to the end, or to the limit in seconds; the output goes to a log as well."""
        limit = max(1.0, min(limit, self.left()))
        process = self.start(name, command, **environment)
        timed_out = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            stop(process)
        return Finished(process.returncode, self.log(name).read_text(errors="replace"), timed_out)

    def start(self, name: str, command: Sequence[str], **environment: str) -> subprocess.Popen[Any]:
        """Start a process in a group of its own, its output in a log; `stop` ends it."""
        with self.log(name).open("w") as out:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Where the output of the process of that name goes."""
        return self.folder / f"{name}.log"


class SkippedError(Exception):
    """The part cannot be done here; the message says why."""


class FailedError(Exception):
    """The part went wrong; the message says how."""


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process and all of its group, the hard way if it does not leave in ten seconds."""
    if process.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(LEAVE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind, too
    process.wait()


def leave_on_sigterm() -> None:
    """From now on SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that what it started is stopped."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


def must(done: Finished, what: str) -> Finished:
    """Raise FailedError with the last lines of a process that did not end well."""
    if done.timed_out:
        raise FailedError(f"{what} was stopped at its time limit")
    if done.code:
        lines = [line for line in done.output.splitlines() if line.strip()]
        raise FailedError(f"{what} ended with {done.code}: {' | '.join(lines[-2:])[:300]}")
    return done


def do(name: str, part: Callable[[Visit], tuple[str, ...]], visit: Visit) -> Outcome:
    """One part; whatever goes wrong in it ends in its outcome."""
    start = time.monotonic()
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        if visit.left() < 5:
            raise SkippedError("no time was left; give more with --minutes, or run it with --only")
        figures = part(visit)
        outcome = Outcome(name, "done", time.monotonic() - start, figures=figures)
    except SkippedError as reason:
        outcome = Outcome(name, "skipped", time.monotonic() - start, str(reason))
    except Exception as error:
        text = str(error) if isinstance(error, FailedError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(name, "failed", time.monotonic() - start, text)
    print(f"{name} {outcome.status} in {outcome.seconds:.0f} s {outcome.reason}", file=sys.stderr, flush=True)
    return outcome


def print_parts(outcomes: Sequence[Outcome], place: Path) -> None:
    """What was done, and plainly what was not."""
    table = Table("part", "status", "seconds", "figures", title=f"results in {place}", title_justify="left")
    for outcome in outcomes:
        figures = "\n".join(outcome.figures) or outcome.reason
        table.add_row(outcome.part, outcome.status, f"{outcome.seconds:.0f}", figures)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for outcome in outcomes:
        if outcome.status != "done":
            console.print(f"NOT MEASURED: {outcome.part} {outcome.status}: {outcome.reason}", highlight=False)
