"""What a recorded workload amounts to: users, requests, concurrency, lengths, shared beginnings, waits."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jserve.api.telemetry.workload import RecordedRequest

_MINUTE_MS = 60_000.0
WAIT_S = 5.0
"""A first token after this long is counted as a wait: most people have looked elsewhere by then."""
_REFUSALS = {408, 429, 502, 503, 504, 529}


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of some numbers, the values that half and 95% of them do not exceed, and the largest."""

    mean: float
    p50: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """All 0 where there are none. A percentile is the smallest value that enough of them do not exceed."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        ordered = sorted(values)

        def at(percent: int) -> float:
            return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

        return cls(sum(ordered) / len(ordered), at(50), at(95), ordered[-1])


@dataclass(frozen=True, slots=True)
class Statistics:
    """Times in seconds, lengths in tokens, rates a minute or a second as named; shares from 0 to 1."""

    requests: int
    users: int
    seconds: float
    a_minute: Spread
    """Requests in each minute from the first to the last."""
    at_once: Spread
    """Requests that were being answered, by time; `mean` is Little's law of what was observed."""
    input_length: Spread
    output_length: Spread
    context: Spread
    """Tokens of prompt and answer together, or the limit that was asked for where that is more."""
    output_a_second: float
    """Tokens generated a second in the busiest minute."""
    shared: float
    """Share of the prompts' blocks that had been seen before: what a prefix cache may spare."""
    first_token: Spread
    total: Spread
    waited: float
    """Share of requests whose first token, or whole answer where it did not stream, took more than `WAIT_S`."""
    refused: float
    failed: float
    minutes: tuple[int, ...]
    """Requests of each minute."""
    busy: tuple[tuple[float, int], ...]
    """From which second on how many requests were being answered."""
    estimated: float
    models: tuple[tuple[str, int], ...]


def measure(requests: Sequence[RecordedRequest]) -> Statistics:
    """The figures of a trace, which must not be empty."""
    first = min(request.timestamp for request in requests)
    last = max(request.timestamp + (request.e2e_ms or 0.0) for request in requests)
    answered = [request for request in requests if 200 <= request.status < 400]
    minutes = Counter(int((request.timestamp - first) // _MINUTE_MS) for request in requests)
    counts = [minutes[minute] for minute in range(max(minutes) + 1)]
    busy = _busy(requests, first)
    return Statistics(
        requests=len(requests),
        users=len({request.session_id for request in requests}),
        seconds=(last - first) / 1000,
        a_minute=Spread.of(counts),
        at_once=_over_time(busy, (last - first) / 1000),
        input_length=Spread.of([request.input_length for request in answered]),
        output_length=Spread.of([request.output_length for request in answered]),
        context=Spread.of([_context(request) for request in answered]),
        output_a_second=_busiest_minute(answered, first),
        shared=_shared(requests),
        first_token=Spread.of([request.ttft_ms / 1000 for request in answered if request.ttft_ms is not None]),
        total=Spread.of([request.e2e_ms / 1000 for request in answered if request.e2e_ms is not None]),
        waited=_share(answered, _has_waited),
        refused=_share(requests, lambda request: request.status in _REFUSALS),
        failed=_share(requests, lambda request: request.status == 0 or request.status in (500, 501)),
        minutes=tuple(counts),
        busy=busy,
        estimated=_share(requests, lambda request: request.estimated),
        models=tuple(Counter(request.model for request in requests).most_common()),
    )


def _share(requests: Sequence[RecordedRequest], holds: Callable[[RecordedRequest], bool]) -> float:
    return sum(1 for request in requests if holds(request)) / len(requests) if requests else 0.0


def _has_waited(request: RecordedRequest) -> bool:
    wait = request.ttft_ms if request.stream else request.e2e_ms
    return wait is not None and wait > 1000 * WAIT_S


def _context(request: RecordedRequest) -> int:
    return request.input_length + max(request.output_length, request.max_tokens or 0)


def _busy(requests: Sequence[RecordedRequest], first: float) -> tuple[tuple[float, int], ...]:
    """The number of open requests after each moment at which it changes."""
    changes: Counter[float] = Counter()
    for request in requests:
        if request.e2e_ms:
            changes[(request.timestamp - first) / 1000] += 1
            changes[(request.timestamp + request.e2e_ms - first) / 1000] -= 1
    open_now, steps = 0, []
    for moment in sorted(changes):
        open_now += changes[moment]
        steps.append((moment, open_now))
    return tuple(steps)


def _over_time(busy: Sequence[tuple[float, int]], seconds: float) -> Spread:
    """Percentiles by how long each number of open requests lasted."""
    lasted: dict[int, float] = defaultdict(float)
    before, count = 0.0, 0
    for moment, then in [*busy, (seconds, 0)]:
        lasted[count] += moment - before
        before, count = moment, then
    whole = sum(lasted.values())
    if whole <= 0:
        return Spread(0.0, 0.0, 0.0, 0.0)

    def at(share: float) -> float:
        passed = 0.0
        for number in sorted(lasted):
            passed += lasted[number]
            if passed >= share * whole:
                return float(number)
        return float(max(lasted))

    mean = sum(number * time for number, time in lasted.items()) / whole
    return Spread(mean, at(0.5), at(0.95), float(max((number for _, number in busy), default=0)))


def _busiest_minute(requests: Sequence[RecordedRequest], first: float) -> float:
    """Tokens a second of the minute in which the most were asked for."""
    tokens: Counter[int] = Counter()
    for request in requests:
        tokens[int((request.timestamp - first) // _MINUTE_MS)] += request.output_length
    return max(tokens.values(), default=0) / 60


def _shared(requests: Sequence[RecordedRequest]) -> float:
    seen: set[int] = set()
    total = known = 0
    for request in sorted(requests, key=lambda request: request.timestamp):
        total += len(request.hash_ids)
        known += sum(1 for block in request.hash_ids if block in seen)
        seen.update(request.hash_ids)
    return known / total if total else 0.0
