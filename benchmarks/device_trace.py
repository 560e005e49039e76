"""What a trace of `jax.profiler.trace` says of steps on a GPU: idle time, and CUDA graphs. Imports no jax.

Written for what the profiler is documented to write, a Chrome trace with a process "/device:GPU:n" for each GPU and a
thread for each stream; no trace of a GPU has been read with it yet.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Trace", "read_trace"]

PAUSE_US = 1000.0  # between steps that were measured apart: not a gap between kernels
NO_WORK = ("Steps", "XLA Modules", "XLA Ops", "Framework", "Source", "Launch Stats")  # lines derived from the kernels


@dataclass(frozen=True, slots=True)
class Trace:
    """The first GPU, in one trace."""

    idle_share: float
    """The share of the time in which it runs no kernel on any stream."""
    graph_updates: int
    """CUDA graphs made, or changed because an address was another one."""
    graph_launches: int


def read_trace(folder: Path) -> Trace | None:
    """The newest trace in a folder; None where there is none, or it has no GPU."""
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not traces:
        return None
    with gzip.open(traces[-1]) as file:
        events = json.load(file)["traceEvents"]
    idle = share_of_gaps(kernels(events))
    return None if idle is None else Trace(idle, *graph_counts(events))


def graph_counts(events: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Updates and launches of CUDA graphs, of the host's events that XLA names after its command buffers."""
    names = [e["name"].lower() for e in events if e.get("ph") == "X" and "command_buffer" in e.get("name", "").lower()]
    changed = sum(name.endswith(("::update", "::create", "::initialize")) for name in names)
    return changed, sum(name.endswith("::execute") for name in names)


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
