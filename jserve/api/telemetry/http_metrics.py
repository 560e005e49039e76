"""HTTP requests as the usual instrumentator of FastAPI apps counts them, whose names boards read."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from jserve.api.telemetry.histogram import Histogram

UNCOUNTED_PATHS = frozenset(
    {"/metrics", "/health", "/health/decode", "/ready", "/ping", "/load", "/version", "/server_info"}
)
"""Probes and scrapes, which would drown what clients do."""
_COARSE_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_FINE_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class HttpMetrics:
    """Counts by route, never by path, and by the usual methods: what a client sends makes no new series.

    `status` is "2xx" to "5xx", as the instrumentator groups it and as boards ask for it.
    """

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._request_bytes: Counter[str] = Counter()
        self._response_bytes: Counter[str] = Counter()
        self._seconds: dict[tuple[str, str], Histogram] = {}
        self._all_seconds = Histogram("http_request_duration_highr_seconds", "Length of all requests.", _FINE_S)

    def observe(
        self, handler: str, method: str, status: int, *, seconds: float, request_bytes: int, response_bytes: int
    ) -> None:
        """A request is over. `handler` is its route, "none" for none."""
        method = method if method in _METHODS else "other"
        self._requests[handler, method, f"{status // 100}xx"] += 1
        self._request_bytes[handler] += request_bytes
        self._response_bytes[handler] += response_bytes
        if (handler, method) not in self._seconds:
            histogram = Histogram("http_request_duration_seconds", "Length of requests.", _COARSE_S)
            self._seconds[handler, method] = histogram
        self._seconds[handler, method].observe(seconds)
        self._all_seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        requests = CounterMetricFamily("http_requests", "Requests by route.", labels=["handler", "method", "status"])
        counts: Counter[str] = Counter()
        for (handler, method, status), count in sorted(self._requests.items()):
            requests.add_metric([handler, method, status], count)
            counts[handler] += count
        yield requests
        for name, sums, what in (
            ("http_request_size_bytes", self._request_bytes, "Content-Length of requests."),
            ("http_response_size_bytes", self._response_bytes, "Bytes of answers' bodies."),
        ):
            sizes = SummaryMetricFamily(name, what, labels=["handler"])
            for handler, count in sorted(counts.items()):
                sizes.add_metric([handler], count_value=count, sum_value=sums[handler])
            yield sizes
        yield self._all_seconds.family({})
        durations: HistogramMetricFamily | None = None
        for (handler, method), histogram in sorted(self._seconds.items()):
            family = histogram.family({"handler": handler, "method": method})
            if durations is None:
                durations = family
            else:
                durations.samples += family.samples
        if durations is not None:
            yield durations
