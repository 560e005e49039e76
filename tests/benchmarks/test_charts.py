"""The charts of the committed results: nothing is cut off, nothing overlaps, and they can be read without colours."""

from itertools import combinations, pairwise
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.charts import STYLES, charts
from benchmarks.host_scaling_plot import FILLS


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return {name: drawn(figure) for name, figure in charts().items()}


def drawn(figure: Any) -> Any:
    FigureCanvasAgg(figure).draw()
    return figure


def test_every_chart_is_drawn(figures: dict[str, Any]) -> None:
    assert set(figures) == {"cpu-serving", "cpu-serving-amx", "cpu-targets", "host-scaling"}


def boxes(axis: Any) -> list[Any]:
    """Where the labels of an axis stand, in pixels."""
    labels = [label for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
    low, high = sorted(axis.get_view_interval())
    places = [label.get_position()[0 if axis.axis_name == "x" else 1] for label in labels]
    return [label.get_window_extent() for label, place in zip(labels, places, strict=True) if low <= place <= high]


def test_no_label_is_cut_off(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        for axes in figure.axes:
            for box in [*boxes(axes.xaxis), *boxes(axes.yaxis), axes.title.get_window_extent()]:
                assert box.x0 >= 0, name
                assert box.y0 >= 0, name
                assert box.x1 <= figure.bbox.x1, name
                assert box.y1 <= figure.bbox.y1, name


def test_no_two_ticks_overlap(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                assert not any(one.overlaps(other) for one, other in pairwise(boxes(axis))), name


def test_targets_stand_under_the_machine_that_they_were_measured_on(figures: dict[str, Any]) -> None:
    panels = {axes.get_title(loc="left"): axes for axes in figures["cpu-targets"].axes}
    assert len(panels) == 2
    for machine, axes in panels.items():
        texts = [label.get_text() for label in axes.get_yticklabels()]
        assert {text.startswith("AMX") for text in texts} == {"Xeon" in machine}


def test_servers_and_phases_differ_without_colour() -> None:
    for one, other in combinations(STYLES.values(), 2):
        assert one[1] != other[1]
        assert one[2] != other[2]
    assert len({hatch for _, hatch in FILLS}) == len(FILLS)
