"""A report as one page of HTML: the decision, the figures, and plots that need no script, nor colour."""

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #16181d; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
.decision { border-left: 4px solid #1d5fd1; padding: .3rem 1rem; background: #f4f5f7; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #444; }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 180, 46, 24


def page(title: str, decision: str, rows: Sequence[tuple[str, str]], plots: Sequence[str]) -> str:
    """The page."""
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<h1>{escape(title)}</h1><p class="decision">{escape(decision)}</p><table>{table}</table>'
        f"{''.join(plots)}</html>\n"
    )


def steps(title: str, points: Sequence[tuple[float, float]], last: float, unit: str) -> str:
    """A line that keeps each value until the next; `points` are (seconds, value)."""
    top = max((value for _, value in points), default=0.0) or 1.0
    path = f"M{_x(0, last):.1f} {_y(0, top):.1f}"
    for moment, value in [*points, (last, 0.0)]:
        path += f"H{_x(moment, last):.1f}V{_y(value, top):.1f}"
    return _frame(title, f'<path d="{path}" fill="none" stroke="#1d5fd1" stroke-width="1.5"/>', top, _clock(last), unit)


def bars(title: str, values: Sequence[float], unit: str) -> str:
    """A bar for each minute."""
    top, width = max(values, default=0.0) or 1.0, (_WIDTH - _LEFT) / max(1, len(values))
    marks = "".join(
        f'<rect x="{_LEFT + at * width:.1f}" y="{_y(value, top):.1f}" width="{max(0.5, 0.85 * width):.1f}" '
        f'height="{_HEIGHT - _BOTTOM - _y(value, top):.1f}" fill="#1d5fd1"/>'
        for at, value in enumerate(values)
    )
    return _frame(title, marks, top, _clock(60.0 * len(values)), unit)


def histogram(title: str, values: Sequence[float]) -> str:
    """How many of the values lie in each of 40 equal ranges."""
    most = max(values, default=0.0) or 1.0
    counts = [0] * 40
    for value in values:
        counts[min(39, int(40 * value / most))] += 1
    top, width = float(max(counts)), (_WIDTH - _LEFT) / 40
    marks = "".join(
        f'<rect x="{_LEFT + at * width:.1f}" y="{_y(count, top):.1f}" width="{0.9 * width:.1f}" '
        f'height="{_HEIGHT - _BOTTOM - _y(count, top):.1f}" fill="#1d5fd1"/>'
        for at, count in enumerate(counts)
    )
    return _frame(title, marks, top, f"{most:,.0f} tokens", "requests")


def _frame(title: str, marks: str, top: float, right: str, unit: str) -> str:
    ground = _HEIGHT - _BOTTOM
    return (
        f'<h2>{escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{marks}'
        f'<path d="M{_LEFT} 8V{ground}H{_WIDTH}" fill="none" stroke="#888"/>'
        f'<text x="{_LEFT - 6}" y="14" text-anchor="end">{top:,.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{ground}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{escape(unit)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 8}" text-anchor="end">{escape(right)}</text></svg>'
    )


def _x(moment: float, last: float) -> float:
    return _LEFT + (_WIDTH - _LEFT) * moment / (last or 1.0)


def _y(value: float, top: float) -> float:
    return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - value / top)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
