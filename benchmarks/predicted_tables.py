"""`results/predicted.json` for a person: tables with columns for what a GPU will have measured, and look-ups in it."""

from collections.abc import Sequence
from typing import Any

__all__ = ["find", "markdown"]

HEAD = """# Predicted for an H200, not measured

Written by `python -m benchmarks.predict`, whose docstring has the formulae and `Device` the rates with their sources.
A step is max(weights, products) + max(KV, attention) + all-reduces + launches, or the host's time where that is more;
`limit` is what the data sheet's rates allow, with nothing for all-reduces, launches and the host. `measured` is empty
until a GPU has been measured.
"""


def find(entries: Sequence[dict[str, Any]], **wanted: object) -> dict[str, Any] | None:
    """The first entry with these values, such as `find(prediction["steps"], gpus=1, batch=8, ...)`."""
    return next((e for e in entries if all(e.get(name) == value for name, value in wanted.items())), None)


def markdown(prediction: dict[str, Any]) -> str:
    """All of the file."""
    lines = [HEAD, "## Decode steps, tokens/s of all rows", ""]
    lines += _overview(prediction["steps"])
    lines += ["", "## Decode steps, ms", ""]
    lines += _steps(prediction["steps"])
    lines += ["", "## Prompts alone", ""]
    lines += _prefills(prediction["prefills"])
    lines += ["", "## Kernels", ""]
    lines += _kernels(prediction["kernels"])
    return "\n".join(lines) + "\n"


def _overview(steps: Sequence[dict[str, Any]]) -> list[str]:
    """By plan and context a row, by batch a column; empty where the KV does not fit."""
    batches = list(dict.fromkeys(e["batch"] for e in steps))
    plans = dict.fromkeys((e["model"], e["weights"], e["gpus"], e["context"]) for e in steps)
    rows = []
    for plan in plans:
        same = {e["batch"]: e for e in steps if (e["model"], e["weights"], e["gpus"], e["context"]) == plan}
        cells = [f"{same[b]['tokens_per_s']:,.0f}" if same[b]["predicted_ms"] else "" for b in batches]
        if any(cells):
            rows.append((*plan[:3], f"{plan[3]:,}", *cells))
    return _rows(("model", "weights", "GPUs", "context", *(f"batch {b}" for b in batches)), rows)


def _steps(steps: Sequence[dict[str, Any]]) -> list[str]:
    titles = ("model", "weights", "GPUs", "batch", "context", "weights", "KV", "products", "attention", "all-reduce")
    rows = []
    for e in (e for e in steps if e["predicted_ms"]):
        plan = (e["model"], e["weights"], e["gpus"], e["batch"], f"{e['context']:,}")
        split = map(_short, e["split_ms"].values())
        rows.append((*plan, *split, _short(e["limit_ms"]), _short(e["predicted_ms"]), "", ""))
    return _rows((*titles, "launches", "host", "limit", "predicted", "measured", "of predicted"), rows)


def _prefills(prefills: Sequence[dict[str, Any]]) -> list[str]:
    titles = ("model", "weights", "GPUs", "prompt", "limit ms", "predicted ms", "tokens/s", "measured ms")
    rows = []
    for e in prefills:
        plan = (e["model"], e["weights"], e["gpus"], f"{e['prompt']:,}")
        times = (_short(e["limit_ms"]), _short(e["predicted_ms"]), f"{e['tokens_per_s']:,.0f}")
        rows.append((*plan, *times, "", ""))
    return _rows((*titles, "of predicted"), rows)


def _kernels(kernels: Sequence[dict[str, Any]]) -> list[str]:
    titles = ("kernel", "case", "MB", "GFLOP", "bound by", "limit us", "predicted us", "measured us", "of predicted")
    rows = []
    for e in kernels:
        work = (f"{e['bytes'] / 1e6:,.1f}", f"{e['flops'] / 1e9:,.1f}", e["bound"])
        rows.append((e["kernel"], e["case"], *work, _short(e["limit_us"]), _short(e["predicted_us"]), "", ""))
    return _rows(titles, rows)


def _rows(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (titles, ["---"] * len(titles), *rows)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
