"""Charts of `host_scaling`'s figures: the phases of a turn, stacked, over what is swept."""

from collections.abc import Mapping
from typing import Any

TITLES = {
    "rows": "sequences in a decode step",
    "context": "tokens of context, 8 sequences",
    "queue": "requests that wait, 256 sequences",
    "turnover": "arrivals and ends a turn, 256 sequences",
    "admission new": "tokens of a new prompt beside 255 decodes, costliest turn",
    "admission cached": "tokens of a cached prompt beside 255 decodes, costliest turn",
}
SWEPT = {"rows": "rows", "queue": "waiting", "turnover": "waiting"}
# Okabe and Ito's colours, from light to dark and back; the hatches tell phases apart without colour.
FILLS = (
    ("#E8E8E8", "oo"),
    ("#56B4E9", "////"),
    ("#F0E442", "...."),
    ("#E69F00", ""),
    ("#0072B2", "xxxx"),
    ("#CC79A7", "\\\\\\\\"),
    ("#009E73", "----"),
    ("#999999", "++++"),
)


def scaling_chart(scaling: Mapping[str, Any]) -> Any:
    """One panel for each sweep and number of layers."""
    from matplotlib.figure import Figure

    kinds = dict.fromkeys((p["sweep"], p["layers"]) for p in scaling["points"] if p["sweep"] in TITLES)
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * lines), facecolor="white")
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    for panel, (sweep, layers) in zip(panels.flat, kinds, strict=False):
        draw_sweep(panel, sweep, [p for p in scaling["points"] if (p["sweep"], p["layers"]) == (sweep, layers)])
        panel.set_title(f"{sweep}, {layers} layer{'s' * (layers > 1)}", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=len(labels), fontsize=8, handleheight=1.6)
    machine = scaling["machine"]
    figure.text(0.01, 0.003, f"host time of a turn; {machine['processor']}, jax {scaling['jax']}", fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 0.95))
    return figure


def draw_sweep(panel: Any, sweep: str, points: list[Any]) -> None:
    """The stacked phases of each point, and the whole turn as a line."""
    places = range(len(points))
    bottom = [0.0] * len(points)
    for phase, (colour, hatch) in zip(points[0]["phases_us"], FILLS, strict=True):
        heights = [p["phases_us"][phase] for p in points]
        panel.bar(places, heights, bottom=bottom, label=phase, color=colour, hatch=hatch, edgecolor="#333333", lw=0.4)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    if not sweep.startswith("admission"):
        panel.plot(places, [p["wall_us"] for p in points], "k.-", label="whole turn, wall")
    panel.set_xticks(places, [f"{p[SWEPT.get(sweep, 'context')]:,}" for p in points])
    panel.set_xlabel(TITLES[sweep], fontsize=9)
    panel.set_ylabel("us", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
