"""Charts of `host_scaling`'s figures: the phases of a turn, stacked, over what is swept."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.turn_clock import PHASES

TITLES = {
    "rows": "sequences in a decode step",
    "context": "tokens of context, 8 sequences",
    "queue": "requests that wait, 256 sequences",
    "turnover": "arrivals and ends a turn, 256 sequences",
    "admission new": "tokens of a new prompt beside 255 decodes, costliest turn",
    "admission cached": "tokens of a cached prompt beside 255 decodes, costliest turn",
}
SWEPT = {"rows": "rows", "queue": "waiting", "turnover": "waiting"}


def plot(found: dict[str, Any], file: Path) -> None:
    """One panel for each sweep and number of layers, as PNG."""
    kinds = dict.fromkeys((p["sweep"], p["layers"]) for p in found["points"] if p["sweep"] in TITLES)
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(5.2 * columns, 3.6 * lines), squeeze=False)
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    for panel, (sweep, layers) in zip(panels.flat, kinds, strict=False):
        points = [p for p in found["points"] if (p["sweep"], p["layers"]) == (sweep, layers)]
        places = range(len(points))
        bottom = [0.0] * len(points)
        for phase in PHASES:
            heights = [p["phases_us"][phase] for p in points]
            panel.bar(places, heights, bottom=bottom, label=phase)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        if not sweep.startswith("admission"):
            panel.plot(places, [p["wall_us"] for p in points], "k.-", label="whole turn, wall")
        panel.set_xticks(places, [f"{p[SWEPT.get(sweep, 'context')]:,}" for p in points])
        panel.set_xlabel(TITLES[sweep], fontsize=8)
        panel.set_ylabel("us", fontsize=8)
        panel.set_title(f"{sweep}, {layers} layer{'s' * (layers > 1)}", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(axis="y", alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=len(labels), fontsize=8)
    machine = found["machine"]
    figure.text(0.01, 0.003, f"host time of a turn; {machine['processor']}, jax {found['jax']}", fontsize=7)
    figure.tight_layout(rect=(0, 0.02, 1, 0.95))
    figure.savefig(file, dpi=110)
