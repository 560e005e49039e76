"""In what share of a step no kernel runs, from the trace that `jax.profiler.trace` writes. Imports no jax.

Written for what the profiler is documented to write, a Chrome trace with a process "/device:GPU:n" for each GPU and a
thread for each stream; no trace of a GPU has been read with it yet.
"""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["idle_share"]

PAUSE_US = 1000.0  # between steps that were measured apart: not a gap between kernels
NO_WORK = ("Steps", "XLA Modules", "XLA Ops", "Framework", "Source", "Launch Stats")  # lines derived from the kernels


def idle_share(folder: Path) -> float | None:
    """The share of time in which the first GPU runs no kernel on any stream; None where the trace has no GPU."""
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not traces:
        return None
    with gzip.open(traces[-1]) as file:
        events = json.load(file)["traceEvents"]
    return share_of_gaps(kernels(events))


def kernels(events: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
    """Start and end in microseconds of what ran on the streams of the first GPU."""
    events = list(events)
    named = [(e["name"], e.get("pid"), e.get("tid"), e["args"].get("name", "")) for e in events if e.get("ph") == "M"]
    gpus = sorted((name, pid) for kind, pid, _, name in named if kind == "process_name" and "/device:GPU" in name)
    if not gpus:
        return []
    derived = {(pid, tid) for kind, pid, tid, name in named if kind == "thread_name" and name.startswith(NO_WORK)}
    return [
        (e["ts"], e["ts"] + e.get("dur", 0.0))
        for e in events
        if e.get("ph") == "X" and e.get("pid") == gpus[0][1] and (e.get("pid"), e.get("tid")) not in derived
    ]


def share_of_gaps(spans: Iterable[tuple[float, float]]) -> float | None:
    """Idle time over all time, of spans that may overlap; what lies between bursts does not count as either."""
    idle = busy = 0.0
    end: float | None = None
    for start, stop in sorted(spans):
        if end is None or start - end > PAUSE_US:
            end = start
        idle += max(0.0, start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return idle / (idle + busy) if busy else None
