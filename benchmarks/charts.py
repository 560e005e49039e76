"""Charts of the result files, as PNG beside them.

    python -m benchmarks.charts                     those under benchmarks/results
    python -m benchmarks.charts --results DIR

`cpu-serving.png`, `cpu-serving-amx.png`: throughput against latency, one panel per kind of prompt, one line per server,
one point per number of streams; up and to the left is better. `cpu-targets.png`: each target's ratio, beside the one
that is wanted. `host-scaling.png`: see `benchmarks.host_scaling_plot`. All can be read in black and white: servers
differ by marker and dashes, phases by hatch, and a missed target has a cross. Needs matplotlib
(`pip install 'jserve[bench]'`).
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.host_scaling_plot import scaling_chart
from benchmarks.speed_table import Row, rows

RESULTS = Path(__file__).parent / "results"
DOTS_PER_INCH = 130
SERVING = ("cpu-serving", "cpu-serving-amx")
# Okabe and Ito's colours, told apart with every common kind of colour vision; a marker and dashes each besides.
STYLES = {
    "jserve": ("#0072B2", "o", "-"),
    "jserve-bf16": ("#56B4E9", "D", (0, (5, 1.5))),
    "vllm": ("#D55E00", "s", (0, (1, 1))),
    "llama": ("#009E73", "^", (0, (4, 1.5, 1, 1.5))),
    "transformers": ("#7F7F7F", "v", (0, (2.5, 2.5))),
}
TICKS = 7
"""More of them on one axis overlap."""
NAME_CHARACTERS = 62
TEXT, GRID = "#222222", "#DDDDDD"
MET, MISSED = "#0072B2", "#D55E00"
Mark = tuple[str, float, float, str]
"""What to write at a point: text, x, y, colour."""


def serving_chart(data: Mapping[str, Any]) -> Any:
    """Output tokens/s over the time per output token, both axes logarithmic."""
    figure, panels = new_figure(len(data["summary"]), 5.0, 4.9)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.80, bottom=0.2, wspace=0.16)
    names = {
        server["name"]: f"{server['label']} {server['version']}, {server['precision']}" for server in data["servers"]
    }
    titles = {kind["name"]: f"{kind['title']},\n{kind['output_len']} out" for kind in data["kinds"]}
    handles: dict[str, Any] = {}
    for axes, (kind, loads) in zip(panels, data["summary"].items(), strict=True):
        marks: list[Mark] = []
        for name in names:
            points = [
                (load.removeprefix("c="), by_server[name]["tpot_p50_ms"], by_server[name]["output_tokens_per_s"])
                for load, by_server in loads.items()
                if name in by_server and by_server[name]["tpot_p50_ms"]
            ]
            if not points:
                continue
            colour, marker, dashes = STYLES[name]
            _, latency, rate = zip(*points, strict=True)
            (handles[name],) = axes.plot(
                latency, rate, color=colour, marker=marker, linestyle=dashes, linewidth=2, markersize=6
            )
            marks += [(text, x, y, colour) for text, x, y in points]
        dress(axes, titles[kind])
        set_ticks(axes)
        label_points(axes, marks)
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
    return figure


def set_ticks(axes: Any) -> None:
    """At least a decade of latency, and no more ticks than fit."""
    from matplotlib.ticker import FixedLocator

    low, high = axes.get_xlim()
    middle, reach = math.sqrt(low * high), max(math.sqrt(high / low), 10**0.5)
    axes.set_xlim(middle / reach, middle * reach)
    for axis, (first, last) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [tick for tick in axis.get_majorticklocs() if first <= tick <= last]
        if len(ticks) > TICKS:
            axis.set_major_locator(FixedLocator([tick for tick in ticks if math.log10(tick).is_integer()]))


def label_points(axes: Any, marks: Sequence[Mark]) -> None:
    """The numbers of streams beside their points: at the side that is farthest from other points and numbers."""
    scale = 72 / axes.figure.dpi
    taken = [axes.transData.transform((x, y)) * scale for _, x, y, _ in marks]
    places = [(-8, 7), (-8, -8), (8, -8), (8, 8), (0, 11), (0, -12), (-13, 0), (-16, 12), (-16, -13)]
    for text, x, y, colour in marks:
        own = axes.transData.transform((x, y)) * scale
        others = [point for point in taken if math.dist(point, own) > 0.01]
        free = [min((math.dist(own + place, point) for point in others), default=99.0) for place in places]
        place = next((p for p, room in zip(places, free, strict=True) if room > 11), places[free.index(max(free))])
        taken.append(own + place)
        axes.annotate(
            text, (x, y), place, textcoords="offset points", ha="center", va="center", fontsize=8, color=colour
        )


def targets_chart(by_machine: Mapping[str, Sequence[Row]]) -> Any:
    """One panel per machine, one line per target that is a ratio: a point at the ratio, a bar at the one wanted."""
    from matplotlib.figure import Figure

    names = {where: [target_name(row) for row in targets] for where, targets in by_machine.items()}
    places = {where: heights(lines) for where, lines in names.items()}
    sizes = [places[where][0] + 1.2 for where in by_machine]
    figure = Figure(figsize=(10.5, 1.3 + 0.27 * sum(sizes) + 0.45 * len(sizes)), facecolor="white")
    panels = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.42, right=0.97, top=1 - 1.0 / tall, bottom=0.4 / tall, hspace=0.08)
    for axes, (where, targets) in zip(panels, by_machine.items(), strict=True):
        dress(axes, where)
        for place, row in zip(places[where], targets, strict=True):
            draw_target(axes, place, row)
        axes.set_yscale("linear")
        axes.set_yticks(places[where], names[where], fontsize=8.5)
        axes.set_ylim(-0.6, places[where][0] + 0.6)
    figure.suptitle(
        "Speed targets, SmolLM2-135M", x=0.01, y=1 - 0.15 / tall, va="top", ha="left", fontsize=12, color=TEXT
    )
    how = "ratio to the peer; bar: wanted; round point: reached; cross: missed"
    figure.text(0.01, 1 - 0.62 / tall, how, fontsize=9, color=TEXT)
    return figure


def target_name(row: Row) -> str:
    """A target's text, broken where it is too long for the margin."""
    return textwrap.fill(row.text.replace("`", ""), NAME_CHARACTERS)


def draw_target(axes: Any, place: float, row: Row) -> None:
    """The line of one target."""
    ratio, wanted = row.reached[0].ratio or 0.0, row.wanted_ratio or 0.0
    colour = MET if row.met else MISSED
    axes.plot([wanted, ratio], [place, place], color=colour, linewidth=3, alpha=0.45)
    axes.plot(ratio, place, color=colour, marker="o" if row.met else "X", markersize=8)
    axes.plot([wanted] * 2, [place - 0.42, place + 0.42], color=TEXT, linewidth=2)
    side, align = (-9, "right") if ratio < wanted else (9, "left")
    axes.annotate(
        f"{ratio:.2f}", (ratio, place), (side, 0), textcoords="offset points", ha=align, va="center", fontsize=8
    )


def heights(names: Sequence[str]) -> list[float]:
    """Where each name's line stands, the first at the top; a name of two lines takes the room of one and a half."""
    place, places = 0.0, []
    for name in reversed(names):
        room = 0.25 * name.count("\n")
        places.append(place + room)
        place += 1 + 2 * room
    return places[::-1]


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
    return f"SmolLM2-135M on {processor(data)}, {data['time'][:10]}" + (
        " (tiny: figures mean nothing)" if data.get("tiny") else ""
    )


def processor(data: Mapping[str, Any]) -> str:
    """`2 cores of AMD EPYC`."""
    machine = data["machine"]
    name = machine["processor"].replace("(R)", "").replace(" Processor", "")
    return f"{machine['cores']} cores of {name}"


def charts(results: Path = RESULTS) -> dict[str, Any]:
    """A matplotlib figure for each chart whose result file is there, by the chart's name."""
    ratios, files = rows(results)
    serving = {name: files.get(f"{name}.json") for name in SERVING}
    figures = {name: serving_chart(data) for name, data in serving.items() if data and data["summary"]}
    by_machine: dict[str, list[Row]] = {}
    for row in ratios:
        if row.wanted_ratio and row.reached and row.reached[0].ratio:
            by_machine.setdefault(processor(files[row.file]), []).append(row)
    if by_machine:
        figures["cpu-targets"] = targets_chart(by_machine)
    if scaling := files.get("host-scaling.json"):
        figures["host-scaling"] = scaling_chart(scaling)
    return figures


def draw_all(results: Path = RESULTS) -> list[Path]:
    """Write every chart whose result file is there."""
    drawn = []
    for name, figure in charts(results).items():
        figure.savefig(results / f"{name}.png", dpi=DOTS_PER_INCH)
        drawn.append(results / f"{name}.png")
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
