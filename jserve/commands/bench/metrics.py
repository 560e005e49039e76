"""From the outcomes of a run to its figures: rates, latencies in milliseconds, goodput, and what to distrust.

ttft  request sent (open loop: due, so that a late client does not flatter the server) to first text
tpot  (end - first text) / (output tokens - 1), one value a request
itl   time between two events that brought text; an event may carry several tokens, see `tokens_per_event`
e2el  request sent (or due) to end of the answer
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jserve.commands.bench.interference import CpuShares
from jserve.commands.bench.load import Outcome

LATENCIES = ("ttft", "tpot", "itl", "e2el")
OTHERS_LIMIT = 0.10  # share of the machine's CPU; beyond it the figures of CPU servers are known to collapse
CLIENT_LIMIT = 0.8  # of one core: beyond it the client itself may be what is measured
LAG_LIMIT_MS = 50.0
MAX_ERROR_KINDS = 10


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """Figures of one run of one target. Rates count only requests that succeeded."""

    requests: int
    failed: int
    errors: dict[str, int]
    duration_s: float
    prompt_tokens: int | None
    output_tokens: int
    counted_by: dict[str, int]
    short_answers: int
    tokens_per_event: float | None
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None
    goodput_per_s: float | None
    latency_ms: dict[str, dict[str, float]]
    arrival_lag_ms: float
    cpu: CpuShares | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Latencies of one answered request in milliseconds; None where one event cannot tell."""

    ttft: float | None
    tpot: float | None
    itl: tuple[float, ...]
    e2el: float


def timing_of(outcome: Outcome, streamed: bool) -> Timing:
    """The latencies of a request that succeeded."""
    end_to_end = (outcome.ended - outcome.due) * 1e3
    times = outcome.text_times
    if not streamed or not times:
        return Timing(None, None, (), end_to_end)
    rest = outcome.output_tokens - 1
    return Timing(
        ttft=(times[0] - outcome.due) * 1e3,
        tpot=(outcome.ended - times[0]) * 1e3 / rest if rest > 0 else None,
        itl=tuple(float(gap) * 1e3 for gap in np.diff(times)),
        e2el=end_to_end,
    )


def distribution(values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles (linear between ranks), by name: `mean`, `p50`, `p99.9`; empty for no values."""
    if not values:
        return {}
    points = np.percentile(values, list(percentiles))
    named = {f"p{rank:g}": float(value) for rank, value in zip(percentiles, points, strict=True)}
    return {"mean": float(np.mean(values)), **named}


def within(timing: Timing, limits: Mapping[str, float]) -> bool:
    """Whether a request kept every limit (ms); a latency that one token does not have is kept."""
    kept = {"ttft": timing.ttft, "tpot": timing.tpot, "e2el": timing.e2el}
    return all((value := kept[name]) is None or value <= limit for name, limit in limits.items())


def measure(
    outcomes: Sequence[Outcome],
    *,
    streamed: bool,
    percentiles: Sequence[float] = (50, 90, 99),
    goodput: Mapping[str, float] | None = None,
    cpu: CpuShares | None = None,
    cores: int = 1,
) -> RunMetrics:
    """The figures of one run; `goodput` holds limits in ms for ttft, tpot or e2el."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    timings = [timing_of(outcome, streamed) for outcome in good]
    duration = max(o.ended for o in outcomes) - min(o.due for o in outcomes) if outcomes else 0.0
    output_tokens = sum(o.output_tokens for o in good)
    prompt_counts = [o.prompt_tokens for o in good]
    prompt_tokens = None if None in prompt_counts or not good else sum(filter(None, prompt_counts))
    events = sum(len(o.text_times) for o in good)
    lag_ms = max(((o.sent - o.due) * 1e3 for o in outcomes), default=0.0)

    def rate(amount: float) -> float:
        return amount / duration if duration > 0 else 0.0

    return RunMetrics(
        requests=len(outcomes),
        failed=len(outcomes) - len(good),
        errors=dict(Counter(o.error for o in outcomes if o.error).most_common(MAX_ERROR_KINDS)),
        duration_s=duration,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        counted_by=dict(Counter(o.counted_by for o in good)),
        short_answers=sum(o.output_tokens < o.asked_tokens for o in good),
        tokens_per_event=output_tokens / events if streamed and events else None,
        requests_per_s=rate(len(good)),
        output_tokens_per_s=rate(output_tokens),
        total_tokens_per_s=None if prompt_tokens is None else rate(output_tokens + prompt_tokens),
        goodput_per_s=rate(sum(within(t, goodput) for t in timings)) if goodput else None,
        latency_ms=latencies(timings, percentiles),
        arrival_lag_ms=lag_ms,
        cpu=cpu,
        flags=flags_of(good, len(outcomes), lag_ms, cpu, cores),
    )


def latencies(timings: Sequence[Timing], percentiles: Sequence[float]) -> dict[str, dict[str, float]]:
    """Each latency's distribution over the requests (itl: over all gaps)."""
    return {
        "ttft": distribution([t.ttft for t in timings if t.ttft is not None], percentiles),
        "tpot": distribution([t.tpot for t in timings if t.tpot is not None], percentiles),
        "itl": distribution([gap for t in timings for gap in t.itl], percentiles),
        "e2el": distribution([t.e2el for t in timings], percentiles),
    }


def flags_of(
    good: Sequence[Outcome], requests: int, lag_ms: float, cpu: CpuShares | None, cores: int
) -> tuple[str, ...]:
    """Reasons not to trust a run, in words; none for a clean one."""
    flags = []
    if failed := requests - len(good):
        flags.append(f"{failed} of {requests} requests failed")
    if any(o.counted_by == "events" for o in good):
        flags.append("tokens counted as events: the server sent no usage")
    if cpu is not None and cpu.others > OTHERS_LIMIT:
        flags.append(f"others took {cpu.others:.0%} of the CPU")
    if cpu is not None and cpu.client * cores > CLIENT_LIMIT:
        flags.append(f"the client took {cpu.client * cores:.0%} of a core")
    if lag_ms > LAG_LIMIT_MS:
        flags.append(f"the client sent up to {lag_ms:.0f} ms late")
    return tuple(flags)
