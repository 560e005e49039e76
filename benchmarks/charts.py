"""Charts of the result files, as PNG beside them.

    python -m benchmarks.charts                     those under benchmarks/results
    python -m benchmarks.charts --results DIR

`cpu-serving.png`: throughput against latency, one panel per kind of prompt, one line per server, one point per number
of streams; up and to the left is better. `cpu-targets.png`: each target's ratio, beside the one that is wanted.
Needs matplotlib (`pip install 'jserve[bench]'`).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_table import Row, rows

RESULTS = Path(__file__).parent / "results"
# Okabe and Ito's colours, told apart with every common kind of colour vision; a marker each besides.
STYLES = {
    "jserve": ("#0072B2", "o"),
    "jserve-bf16": ("#56B4E9", "D"),
    "vllm": ("#D55E00", "s"),
    "llama": ("#009E73", "^"),
    "transformers": ("#7F7F7F", "v"),
}
SHORT = {
    "jserve": "jserve",
    "jserve-bf16": "jserve bf16",
    "vllm": "vLLM",
    "llama": "llama.cpp",
    "transformers": "transformers",
}
LINE_POINTS = 11.0
TEXT, GRID = "#222222", "#DDDDDD"
MET, MISSED = "#0072B2", "#D55E00"


def serving_chart(data: Mapping[str, Any], out: Path) -> None:
    """Output tokens/s over the time per output token, both axes logarithmic."""
    figure, panels = new_figure(len(data["summary"]), 5.0, 4.9)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.80, bottom=0.2, wspace=0.16)
    names = {
        server["name"]: f"{server['label']} {server['version']}, {server['precision']}" for server in data["servers"]
    }
    titles = {kind["name"]: f"{kind['title']},\n{kind['output_len']} out" for kind in data["kinds"]}
    handles: dict[str, Any] = {}
    for axes, (kind, loads) in zip(panels, data["summary"].items(), strict=True):
        ends = []
        for name in names:
            points = [
                (load.removeprefix("c="), by_server[name]["tpot_p50_ms"], by_server[name]["output_tokens_per_s"])
                for load, by_server in loads.items()
                if name in by_server and by_server[name]["tpot_p50_ms"]
            ]
            if not points:
                continue
            colour, marker = STYLES[name]
            _, latency, rate = zip(*points, strict=True)
            (handles[name],) = axes.plot(latency, rate, color=colour, marker=marker, linewidth=2, markersize=6)
            for text, x, y in points:
                axes.annotate(text, (x, y), (-7, 4), textcoords="offset points", ha="right", fontsize=8, color=colour)
            ends.append((latency[-1], rate[-1], SHORT[name], colour))
        dress(axes, titles[kind])
        axes.set_xlim(right=axes.get_xlim()[1] * 1.9)
        label_ends(axes, ends)
        axes.set_xlabel("time per output token, p50, ms (less is better)")
    panels[0].set_ylabel("output tokens/s, all streams (more is better)")
    figure.suptitle(f"Throughput against latency, {described(data)}", x=0.01, ha="left", fontsize=12, color=TEXT)
    figure.legend(
        [handles[name] for name in handles],
        [names[name] for name in handles],
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    figure.text(0.01, 0.925, "figures at the points: streams at once", fontsize=8.5, color=TEXT)
    figure.savefig(out, dpi=130)


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """The servers' names beside the last points (x, y, name, colour), pushed apart where they would overlap."""
    above = None
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        height = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi  # points from the figure's lower edge
        placed = height if above is None else min(height, above - LINE_POINTS)
        axes.annotate(
            name, (x, y), (8, placed - height), textcoords="offset points", va="center", fontsize=8.5, color=colour
        )
        above = placed


def targets_chart(found: Sequence[Row], where: str, out: Path) -> None:
    """One line per target that is a ratio: a point at the ratio, a mark at the one that is wanted."""
    figure, (axes,) = new_figure(1, 10.5, 1.4 + 0.27 * len(found))
    figure.subplots_adjust(
        left=0.4, right=0.97, top=1 - 0.75 / figure.get_figheight(), bottom=0.5 / figure.get_figheight()
    )
    dress(axes, "ratio to the peer; black mark: wanted; point: reached (blue, round), missed (orange, cross)")
    for place, row in enumerate(reversed(found)):
        ratio, wanted = row.prompt_reads[0].ratio or 0.0, row.wanted_ratio or 0.0
        colour = MET if row.met else MISSED
        axes.plot([wanted, ratio], [place, place], color=colour, linewidth=3, alpha=0.45)
        axes.plot(ratio, place, color=colour, marker="o" if row.met else "X", markersize=8)
        axes.plot([wanted] * 2, [place - 0.42, place + 0.42], color=TEXT, linewidth=2)
        side, align = (-9, "right") if ratio < wanted else (9, "left")
        text = f"{ratio:.2f}"
        axes.annotate(text, (ratio, place), (side, 0), textcoords="offset points", ha=align, va="center", fontsize=8)
    axes.set_yscale("linear")
    axes.set_yticks(range(len(found)), [row.text for row in reversed(found)], fontsize=8.5)
    axes.set_ylim(-0.6, len(found) - 0.4)
    figure.suptitle(f"Targets, {where}", x=0.01, ha="left", fontsize=12, color=TEXT)
    figure.savefig(out, dpi=130)


def new_figure(columns: int, width: float, height: float) -> tuple[Any, Sequence[Any]]:
    """A white figure with panels side by side, of `width` inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), facecolor="white")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def dress(axes: Any, title: str) -> None:
    """What all panels share: logarithmic axes with plain numbers, a light grid, no frame."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(0.12)
    axes.tick_params(colors=TEXT, labelsize=8.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, loc="left", fontsize=10, color=TEXT)


def described(data: Mapping[str, Any]) -> str:
    """Model, machine and day."""
    machine = data["machine"]
    return f"SmolLM2-135M on {machine['cores']} cores of {machine['processor']}, {data['time'][:10]}" + (
        " (tiny: figures mean nothing)" if data.get("tiny") else ""
    )


def draw_all(results: Path = RESULTS) -> list[Path]:
    """Every chart whose result file is there."""
    drawn = []
    serving = results / "cpu-serving.json"
    if serving.exists() and (data := json.loads(serving.read_text()))["summary"]:
        serving_chart(data, results / "cpu-serving.png")
        drawn.append(results / "cpu-serving.png")
    found = [row for row in rows(results)[0] if row.wanted_ratio and row.prompt_reads and row.prompt_reads[0].ratio]
    if found and serving.exists():
        targets_chart(found, described(data), results / "cpu-targets.png")
        drawn.append(results / "cpu-targets.png")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what can be drawn, and name the files."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.charts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    for path in draw_all(parser.parse_args(argv).results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
