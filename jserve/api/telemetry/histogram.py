"""A histogram cheap enough to observe once per token."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client.core import HistogramMetricFamily


class Histogram:
    """Counts values into buckets by upper bound. Observing is a bisection; prometheus_client scans."""

    __slots__ = ("_bounds", "_counts", "_repeats", "_sum", "_value", "help", "name")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._value = 0.0
        self._repeats = 0
        """How often the newest value was seen that is not in the counts yet."""

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value`, `count` times. Sequences of one step bring the same value, which costs less."""
        if value != self._value:
            self._settle()
            self._value = value
        self._repeats += count

    def family(self, labels: Mapping[str, str]) -> HistogramMetricFamily:
        """The samples, cumulative as Prometheus wants them."""
        self._settle()
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        family = HistogramMetricFamily(self.name, self.help, labels=list(labels))
        family.add_metric(list(labels.values()), buckets=buckets, sum_value=self._sum)
        return family

    def _settle(self) -> None:
        self._counts[bisect_left(self._bounds, self._value)] += self._repeats
        self._sum += self._value * self._repeats
        self._repeats = 0


def one_two_five(limit: int) -> list[float]:
    """1, 2, 5, 10, ... up to `limit`."""
    bounds: list[float] = []
    scale = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * scale > limit:
                return bounds
            bounds.append(mantissa * scale)
        scale *= 10
