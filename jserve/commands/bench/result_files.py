"""What `--save-result` writes: a run's figures under the names that `vllm bench serve` gives them."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jserve.commands.bench.load import Outcome, Target
from jserve.commands.bench.metrics import LATENCIES, RunMetrics, Timing, timing_of
from jserve.commands.bench.options import Load, Plan


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run of one target under one load, with what became of each request."""

    plan: Plan
    load: Load
    target: Target
    outcomes: Sequence[Outcome]
    metrics: RunMetrics


class ResultFiles:
    """Writes a file for each run into `folder`; `name` is the first one's where it is not None."""

    def __init__(self, folder: Path, name: str | None, backend: str, *, detailed: bool) -> None:
        self._folder, self._name, self._backend, self._detailed = folder, name, backend, detailed
        self._written: set[Path] = set()

    def write(self, run: MeasuredRun) -> None:
        """Write one. Raises OSError where it cannot be."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(run)
        path.write_text(json.dumps(result_of(run, self._backend, detailed=self._detailed)) + "\n")
        self._written.add(path)

    def _path(self, run: MeasuredRun) -> Path:
        """A name that no earlier run of this command has."""
        rate = "inf" if run.load.rate is None else f"{run.load.rate:g}"
        limit = "" if run.load.concurrency is None else f"-concurrency{run.load.concurrency}"
        model = run.target.model.rpartition("/")[2]
        name = self._name or f"{self._backend}-{rate}qps{limit}-{model}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        path = self._folder / name
        more = 1
        while path in self._written:
            more += 1
            path = (self._folder / name).with_stem(f"{Path(name).stem}-{more}")
        return path


def result_of(run: MeasuredRun, backend: str, *, detailed: bool) -> dict[str, Any]:
    """The result of a run, times in seconds or, where the name says so, milliseconds."""
    metrics, load = run.metrics, run.load
    good = [outcome for outcome in run.outcomes if outcome.error is None]
    timings = [timing_of(outcome, run.plan.style.stream) for outcome in good]
    result = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": backend,
        "label": run.target.name,
        "model_id": run.target.model,
        "num_prompts": metrics.requests,
        "request_rate": "inf" if load.rate in (None, float("inf")) else load.rate,
        "burstiness": load.burstiness,
        "max_concurrency": load.concurrency,
        "duration": metrics.duration_s,
        "completed": metrics.requests - metrics.failed,
        "failed": metrics.failed,
        "total_input_tokens": metrics.prompt_tokens,
        "total_output_tokens": metrics.output_tokens,
        "request_throughput": metrics.requests_per_s,
        "request_goodput": metrics.goodput_per_s,
        "output_throughput": metrics.output_tokens_per_s,
        "total_token_throughput": metrics.total_tokens_per_s,
    }
    for name in LATENCIES:
        values = list(_values(timings, name))
        if values:
            result |= {
                f"mean_{name}_ms": float(np.mean(values)),
                f"median_{name}_ms": float(np.median(values)),
                f"std_{name}_ms": float(np.std(values)),
            }
            ranks = run.plan.percentiles
            points = np.percentile(values, ranks)
            result |= {f"p{rank:g}_{name}_ms": float(point) for rank, point in zip(ranks, points, strict=True)}
    return result | _details(run) if detailed else result


def _values(timings: Iterable[Timing], name: str) -> Iterable[float]:
    for timing in timings:
        value = getattr(timing, name)
        if isinstance(value, tuple):
            yield from value
        elif value is not None:
            yield value


def _details(run: MeasuredRun) -> dict[str, Any]:
    """Times and lengths of each request in turn; failed ones have zeros and their error."""
    timings = [timing_of(outcome, run.plan.style.stream) if outcome.error is None else None for outcome in run.outcomes]
    return {
        "input_lens": [outcome.prompt_tokens or 0 for outcome in run.outcomes],
        "output_lens": [outcome.output_tokens for outcome in run.outcomes],
        "ttfts": [(timing.ttft or 0.0) / 1e3 if timing else 0.0 for timing in timings],
        "itls": [[gap / 1e3 for gap in timing.itl] if timing else [] for timing in timings],
        "generated_texts": [outcome.text for outcome in run.outcomes],
        "errors": [outcome.error or "" for outcome in run.outcomes],
    }
