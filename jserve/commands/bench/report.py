"""Tables and ratios of a serving benchmark; what the JSON file holds."""

import itertools
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jserve.commands.bench.metrics import RunMetrics


@dataclass(frozen=True, slots=True)
class Run:
    """One target under one load in one round."""

    target: str
    load: str
    round: int
    metrics: RunMetrics


@dataclass(frozen=True, slots=True)
class Ratio:
    """How a target compares with another under one load: of each round, and the median.

    `output_rate` above 1 means `of` gives more tokens a second than `to`; `ttft` and `tpot` (of the medians)
    below 1 mean `of` is quicker. The median is over the clean rounds (both runs without flags) if there are
    any, otherwise over all, and `clean_rounds` says how many there were.
    """

    of: str
    to: str
    load: str
    rounds: dict[str, list[float]]
    median: dict[str, float]
    clean_rounds: int


def ratios(runs: Sequence[Run]) -> list[Ratio]:
    """Every pair of targets, the one named first on top, under each load."""
    computed = []
    for load in dict.fromkeys(run.load for run in runs):
        here = [run for run in runs if run.load == load]
        names = dict.fromkeys(run.target for run in here)
        for of, to in itertools.combinations(names, 2):
            top = {run.round: run.metrics for run in here if run.target == of}
            bottom = {run.round: run.metrics for run in here if run.target == to}
            pairs = [(top[index], bottom[index]) for index in sorted(top.keys() & bottom.keys())]
            computed.append(ratio_of(of, to, load, pairs))
    return computed


def ratio_of(of: str, to: str, load: str, pairs: Sequence[tuple[RunMetrics, RunMetrics]]) -> Ratio:
    """One pair's ratios; a round in which a figure is missing or 0 gives none for that figure."""
    clean = [pair for pair in pairs if not pair[0].flags and not pair[1].flags]
    trusted = by_figure(clean or pairs)
    return Ratio(
        of=of,
        to=to,
        load=load,
        rounds=by_figure(pairs),
        median={name: statistics.median(values) for name, values in trusted.items() if values},
        clean_rounds=len(clean),
    )


def by_figure(pairs: Sequence[tuple[RunMetrics, RunMetrics]]) -> dict[str, list[float]]:
    """The ratio of each round, for each figure that is compared."""
    figures: dict[str, list[float]] = {"output_rate": [], "ttft": [], "tpot": []}
    for top, bottom in pairs:
        both = {
            "output_rate": (top.output_tokens_per_s, bottom.output_tokens_per_s),
            "ttft": (typical(top, "ttft"), typical(bottom, "ttft")),
            "tpot": (typical(top, "tpot"), typical(bottom, "tpot")),
        }
        for name, (above, below) in both.items():
            if above and below:
                figures[name].append(above / below)
    return figures


def typical(metrics: RunMetrics, latency: str) -> float | None:
    """The median of a latency, or its mean if the median was not asked for."""
    spread = metrics.latency_ms[latency]
    return spread.get("p50", spread.get("mean"))


def print_runs(console: Console, runs: Sequence[Run], latencies: Sequence[str]) -> None:
    """One row a run: rates, then the chosen latencies, then what to distrust."""
    table = Table(title="runs (latencies in ms)", title_justify="left")
    for heading in ("load", "round", "target", "ok", "failed", "in", "out", "out tok/s", "total tok/s"):
        table.add_column(heading, justify="left" if heading in ("load", "target") else "right")
    shown = {
        name: tuple(dict.fromkeys(key for run in runs for key in run.metrics.latency_ms[name])) for name in latencies
    }
    for name, keys in shown.items():
        if keys:
            table.add_column(f"{name}\n{'/'.join(keys)}", justify="right")
    with_goodput = any(run.metrics.goodput_per_s is not None for run in runs)
    if with_goodput:
        table.add_column("good req/s", justify="right")
    table.add_column("cpu\nothers", justify="right")
    for run in runs:
        m = run.metrics
        cells = [run.load, str(run.round + 1), run.target, str(m.requests - m.failed), str(m.failed)]
        cells += [number(m.prompt_tokens), number(m.output_tokens)]
        cells += [number(m.output_tokens_per_s), number(m.total_tokens_per_s)]
        for name, keys in shown.items():
            if keys:
                cells.append("/".join(number(m.latency_ms[name].get(key)) for key in keys))
        if with_goodput:
            cells.append(number(m.goodput_per_s))
        table.add_row(*cells, "?" if m.cpu is None else f"{m.cpu.others:.0%}")
    console.print(table)
    for run in runs:
        for note in (*run.metrics.flags, *run.metrics.errors):
            console.print(f"{run.load} round {run.round + 1} {run.target}: {note}", markup=False)


def print_ratios(console: Console, shown: Sequence[Ratio]) -> None:
    """One row a pair and load."""
    if not shown:
        return
    table = Table(title="ratios, median of rounds", title_justify="left")
    for heading in ("load", "pair", "out tok/s", "each round", "ttft", "tpot", "clean rounds"):
        table.add_column(heading, justify="right" if heading not in ("load", "pair") else "left")
    for ratio in shown:
        each = " ".join(f"{value:.2f}" for value in ratio.rounds["output_rate"])
        medians = (ratio.median.get(name) for name in ("output_rate", "ttft", "tpot"))
        rate, ttft, tpot = ("-" if value is None else f"{value:.2f}" for value in medians)
        clean = f"{ratio.clean_rounds}" if ratio.clean_rounds else "none"
        table.add_row(ratio.load, f"{ratio.of} / {ratio.to}", rate, each, ttft, tpot, clean)
    console.print(table)
    console.print("out tok/s above 1, ttft and tpot below 1: the first of the pair is better", highlight=False)


def number(value: float | None) -> str:
    """Three significant figures or all digits before the point, whichever is more; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def machine() -> dict[str, object]:
    """What the figures were measured on: processor, cores this process may use, memory, GPUs."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "instructions": vector_instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpu_names(),
    }


def processor_name() -> str:
    """The model name as Linux gives it, else what `platform` knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def vector_instructions() -> list[str]:
    """What speed depends on most in an x86 CPU, as Linux names it; empty where that is not known."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine by name, empty if there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[:-1]
