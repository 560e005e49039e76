"""The targets of a run on a GPU, and what was reached: a row for each target, from the files of `benchmarks.gpu`.

Each row has what was measured, what `benchmarks.predict` said for an H200, and whether the target is met. What is not
in a file, because its part was cut off or could not be done, is "not measured".
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.predicted_tables import find

__all__ = ["PEERS", "Row", "print_targets", "targets"]

PREDICTED = Path(__file__).parent / "results" / "predicted.json"
PEERS = {"transformers": 2.0, "vllm": 1.0}
"""How many times a peer's output tokens/s are wanted."""
STREAMS = (1, 32, 256)
STEPS = ((1, 0.85), (256, 0.75))
"""Batches at a context of 1,024, and the share of (weights + KV) / bandwidth that is wanted."""
W4A16_ROWS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One target. `measured` and `wanted` are of the same kind; `predicted` is the measured time over the predicted."""

    name: str
    wanted: float
    is_most: bool
    measured: float | None
    detail: str = ""
    predicted: float | None = None

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.is_most else self.measured >= self.wanted


def targets(folder: Path) -> list[Row]:
    """All rows, in the order of the parts."""
    predicted = json.loads(PREDICTED.read_text())
    kernels = _read(folder / "kernels.json").get("results", [])
    steps = _read(folder / "steps.json").get("steps", [])
    return [
        *_kernel_rows(kernels, predicted["kernels"]),
        *_step_rows(steps, predicted["steps"]),
        *_serving_rows(folder),
    ]


def _kernel_rows(results: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """The worst case of each kind counts, by its best implementation."""

    def row(name: str, wanted: float, share: str, is_of: Callable[[dict[str, Any]], bool]) -> Row:
        best: dict[str, dict[str, Any]] = {}
        for result in results:
            better = best.get(result["case"])
            if is_of(result) and result.get(share) and (better is None or result[share] > better[share]):
                best[result["case"]] = result
        if not best:
            return Row(name, wanted, False, None)
        worst = min(best.values(), key=lambda result: result[share])
        known = find(predicted, kernel=worst["kernel"], case=worst["case"])
        ratio = worst["microseconds"] / known["predicted_us"] if known else None
        return Row(name, wanted, False, worst[share], f"{worst['case']} {worst['implementation']}", ratio)

    def is_attention(result: dict[str, Any], *words: str) -> bool:
        return result["kernel"] == "paged_attention" and all(word in result["case"] for word in words)

    yield row("decode attention from 8k on, of copy", 0.85, "of_copy", lambda r: is_attention(r, "decode", "x8k"))
    yield row("prefill attention of 8k, of matmul", 0.60, "of_matmul", lambda r: is_attention(r, "prefill_8k"))
    yield row(
        f"W4A16 products of 1 to {W4A16_ROWS} rows, of copy",
        0.75,
        "of_copy",
        lambda r: r["kernel"] == "quant_matmul" and (rows := _w4a16_rows(r["case"])) is not None and rows <= W4A16_ROWS,
    )


def _w4a16_rows(case: str) -> int | None:
    """Such as 32 of llama_3_1_8b_qkv_int4_32."""
    match = re.search(r"_int4_(?:\w+_)?(\d+)$", case)
    return int(match[1]) if match else None


def _step_rows(steps: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]) -> Iterator[Row]:
    for batch, wanted in STEPS:
        step = find(steps, kind="decode", rows=batch, context=1024)
        name = f"decode step of 8B, batch {batch} at 1k, of memory"
        if step is None or not step.get("device_ms"):
            yield Row(name, wanted, False, None, (step or {}).get("skipped") or "")
            continue
        known = find(predicted, model="llama-3.1-8b", weights="bf16", gpus=1, batch=batch, context=1024)
        ratio = step["device_ms"] / known["predicted_ms"] if known and known["predicted_ms"] else None
        yield Row(name, wanted, False, step["memory_ms"] / step["device_ms"], f"{step['device_ms']:.2f} ms", ratio)
    gaps = [step for step in steps if step["kind"] == "decode" and step.get("gaps") is not None]
    worst = max(gaps, key=lambda step: step["gaps"], default=None)
    detail = f"batch {worst['rows']} at {worst['context']:,}" if worst else ""
    yield Row("gaps between kernels, of a decode step", 0.03, True, worst["gaps"] if worst else None, detail)


def _serving_rows(folder: Path) -> Iterator[Row]:
    ours = _rates(folder / "serving.json")
    for peer, wanted in PEERS.items():
        theirs = _rates(folder / f"serving-{peer}.json")
        for streams in STREAMS:
            mine, other = ours.get(f"c={streams}"), theirs.get(f"c={streams}")
            detail = f"{mine:,.0f} tokens/s" if mine else ""
            yield Row(
                f"output tokens/s at {streams} streams, of {peer}",
                wanted,
                False,
                mine / other if mine and other else None,
                f"{detail} against {other:,.0f}" if mine and other else detail,
            )


def _rates(path: Path) -> dict[str, float]:
    return {run["load"]: run["metrics"]["output_tokens_per_s"] for run in _read(path).get("runs", [])}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def print_targets(rows: Sequence[Row]) -> None:
    """A short table, the last thing that a visit prints."""
    titles = ("target", "wanted", "measured", "of predicted time", "met", "")
    table = Table(*titles, title="Targets", title_justify="left")
    for row in rows:
        measured = "not measured" if row.measured is None else _figure(row.measured, row.wanted)
        sign = "at most" if row.is_most else "at least"
        met = {None: "", True: "yes", False: "NO"}[row.is_met]
        ratio = "" if row.predicted is None else f"{row.predicted:.2f} x"
        table.add_row(row.name, f"{sign} {_figure(row.wanted, row.wanted)}", measured, ratio, met, row.detail)
    Console(width=160).print(table)


def _figure(value: float, wanted: float) -> str:
    """A share in percent, or how many times."""
    return f"{value:.0%}" if wanted < 1 else f"{value:.2f} x"
