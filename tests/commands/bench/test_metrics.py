"""Figures of runs and their ratios, from outcomes whose times are known."""

import pytest

pytest.importorskip("aiohttp", reason="the load generator needs the `bench` extra")

from jserve.commands.bench.interference import CpuShares
from jserve.commands.bench.load import Outcome
from jserve.commands.bench.metrics import OTHERS_LIMIT, distribution, measure
from jserve.commands.bench.report import Run, ratios


def outcome(first: float, gap: float, tokens: int, error: str | None = None) -> Outcome:
    """A request due at 0 s whose tokens come at `first`, `first + gap`, ... seconds."""
    times = [first + gap * index for index in range(tokens)]
    return Outcome(
        asked_tokens=tokens,
        due=0.0,
        text_times=times,
        ended=times[-1],
        prompt_tokens=10,
        output_tokens=tokens,
        counted_by="usage",
        error=error,
    )


def run_of(target: str, index: int, first: float, *, others: float = 0.0) -> Run:
    """A run of one request whose five tokens end at twice `first` seconds."""
    cpu = CpuShares(server=0.5, client=0.0, others=others)
    return Run(target, "c=1", index, measure([outcome(first, first / 4, 5)], streamed=True, cpu=cpu))


def test_percentiles_of_known_timings() -> None:
    outcomes = [outcome(first=(index + 1) / 1000, gap=0.010, tokens=3) for index in range(101)]
    metrics = measure(outcomes, streamed=True)
    ttft = metrics.latency_ms["ttft"]
    assert ttft == pytest.approx({"mean": 51, "p50": 51, "p90": 91, "p99": 100})
    assert metrics.latency_ms["tpot"]["mean"] == pytest.approx(10)
    assert metrics.latency_ms["itl"]["p99"] == pytest.approx(10)
    assert metrics.latency_ms["e2el"]["p50"] == pytest.approx(71)
    assert metrics.duration_s == pytest.approx(0.121)
    assert metrics.output_tokens_per_s == pytest.approx(303 / 0.121)
    assert metrics.total_tokens_per_s == pytest.approx((303 + 1010) / 0.121)
    assert distribution([], (50,)) == {}


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    outcomes = [outcome(0.1, 0.01, 11), outcome(0.3, 0.01, 11), outcome(0.1, 0.05, 11)]
    metrics = measure(outcomes, streamed=True, goodput={"ttft": 200, "tpot": 20})
    assert metrics.goodput_per_s == pytest.approx(1 / 0.6)


def test_failed_requests_take_time_but_give_no_tokens() -> None:
    metrics = measure([outcome(0.1, 0.1, 10), outcome(1.1, 0.1, 10, error="boom")], streamed=True)
    assert metrics.duration_s == pytest.approx(2.0)
    assert metrics.output_tokens_per_s == pytest.approx(5.0)
    assert metrics.latency_ms["ttft"]["mean"] == pytest.approx(100)


def test_ratio_is_taken_within_a_round_and_the_median_over_clean_rounds() -> None:
    runs = [
        *(run_of("a", 0, 1.0), run_of("b", 0, 2.0)),
        *(run_of("a", 1, 1.0), run_of("b", 1, 4.0)),
        *(run_of("a", 2, 1.0), run_of("b", 2, 50.0, others=OTHERS_LIMIT + 0.01)),
    ]
    (ratio,) = ratios(runs)
    assert (ratio.of, ratio.to, ratio.clean_rounds) == ("a", "b", 2)
    assert ratio.rounds["output_rate"] == pytest.approx([2, 4, 50])
    assert ratio.median["output_rate"] == pytest.approx(3)
    assert ratio.median["ttft"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_every_pair_of_three_servers_is_compared() -> None:
    compared = ratios([run_of(name, 0, first) for name, first in (("a", 1.0), ("b", 2.0), ("c", 8.0))])
    pairs = {(ratio.of, ratio.to): ratio.median["output_rate"] for ratio in compared}
    assert pairs == pytest.approx({("a", "b"): 2, ("a", "c"): 8, ("b", "c"): 4})


def test_a_run_that_others_disturbed_is_flagged() -> None:
    assert run_of("a", 0, 1.0, others=OTHERS_LIMIT + 0.01).metrics.flags == ("others took 11% of the CPU",)
    assert run_of("a", 0, 1.0, others=OTHERS_LIMIT - 0.01).metrics.flags == ()
