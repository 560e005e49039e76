"""The speed tables of docs/performance.md and of the README, out of `targets.toml` and the result files.

    python -m benchmarks.speed_table            write them between the markers of both pages
    python -m benchmarks.speed_table --check    exit status 1 if a page does not say what the result files give

docs/performance.md has every target, where its figure comes from and what stops those that were missed. The README has
the rows whose target has a `readme` (a short name), at most seven.

A target names its figures by paths into a result file: keys between slashes; in a list, `key=value,...` picks the
first entry that has them. What is not in the file is "not measured", never guessed.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGETS = Path(__file__).with_name("targets.toml")
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
README_ROWS = 7
CHARTS = {
    "cpu-serving.png": "output tokens/s against the time per output token, EPYC",
    "cpu-serving-amx.png": "the same on a Xeon with AMX",
    "cpu-targets.png": "each target's ratio beside the one that is wanted",
    "host-scaling.png": "the engine's host time per step",
}
BEGIN = "<!-- speed: written by `python -m benchmarks.speed_table` out of benchmarks/results -->"
END = "<!-- /speed -->"


@dataclass(frozen=True, slots=True)
class Reached:
    """What one variant of jserve reached; `ratio` to the peer, where the target has one."""

    variant: str
    value: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A target with what was reached. `met` is None where nothing was measured."""

    group: str
    text: str
    wanted: str
    wanted_ratio: float | None
    unit: str
    file: str
    reached: tuple[Reached, ...]
    met: bool | None
    note: str
    readme: str


def find(data: Any, path: str) -> float | None:
    """The number at a path, or None."""
    for step in path.split("/"):
        if isinstance(data, list):
            wanted = [pair.split("=", 1) for pair in step.split(",")]
            data = next((entry for entry in data if all(str(entry.get(k)) == v for k, v in wanted)), None)
        elif isinstance(data, Mapping):
            data = data.get(step)
        else:
            return None
    return float(data) if isinstance(data, int | float) else None


def row_of(target: Mapping[str, Any], files: Mapping[str, Any]) -> Row:
    """One target's row. A target without `ratio` has it from `value` and `peer`, or is about the value alone."""
    data = files.get(target["file"])
    reached: list[Reached] = []
    for variant in target.get("variants", [""]):

        def figure(key: str, variant: str = variant) -> float | None:
            return find(data, target[key].replace("{variant}", variant)) if key in target else None

        value, peer, ratio = figure("value"), figure("peer"), figure("ratio")
        if ratio is None and value is not None and peer:
            ratio = value / peer
        if value is not None or ratio is not None:
            reached.append(Reached(variant, value, ratio))
    return Row(
        target["group"],
        target["text"],
        wanted_text(target),
        target.get("ratio_at_least", target.get("ratio_at_most")),
        target.get("unit", ""),
        target["file"],
        tuple(reached),
        verdict(target, reached),
        target.get("note", ""),
        target.get("readme", ""),
    )


def verdict(target: Mapping[str, Any], reached: Sequence[Reached]) -> bool | None:
    """Whether the target is met, by the variant named first; all of its limits count."""
    if not reached:
        return None
    first = reached[0]
    checks = []
    for name, figure in (("ratio", first.ratio), ("value", first.value)):
        if f"{name}_at_least" in target:
            checks.append(None if figure is None else figure >= target[f"{name}_at_least"])
        if f"{name}_at_most" in target:
            checks.append(None if figure is None else figure <= target[f"{name}_at_most"])
    return None if not checks or None in checks else all(checks)


def wanted_text(target: Mapping[str, Any]) -> str:
    """`at least 1.2 x`."""
    words = []
    for key, sign in (("at_least", "at least"), ("at_most", "at most")):
        if f"ratio_{key}" in target:
            words.append(f"{sign} {target[f'ratio_{key}']:g} x")
        if f"value_{key}" in target:
            words.append(f"{sign} {target[f'value_{key}']:g} {target.get('unit', '')}".strip())
    return target.get("wanted") or ", ".join(words)


def rows(results: Path = RESULTS) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and the result files that are there, by name."""
    targets = tomllib.loads(TARGETS.read_text())["target"]
    names = dict.fromkeys(target["file"] for target in targets)
    files = {name: json.loads((results / name).read_text()) for name in names if (results / name).exists()}
    return [row_of(target, files) for target in targets], files


def number(value: float | None) -> str:
    """Three significant digits, no fewer than all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, str, str]:
    """Reached, ratio and verdict; further variants in brackets."""
    if not row.reached:
        return "not measured", "", ""
    first, *others = row.reached
    reached = f"{number(first.value)} {row.unit}".strip() if first.value is not None else ""
    ratio = f"{first.ratio:.2f} x" if first.ratio is not None else ""
    for other in others:
        reached += f" ({other.variant}: {number(other.value)})" if other.value is not None else ""
        ratio += f" ({other.ratio:.2f} x)" if other.ratio is not None else ""
    return reached, ratio, {True: "yes", False: "no", None: ""}[row.met]


def table_lines(title: str, table: Sequence[tuple[str, Row]], link: str) -> list[str]:
    """A table in markdown with one line for each (name, row); `link` leads to the folder of results."""
    lines = [f"| {title} | target | reached | ratio | met |", "|---|---|---|---|---|"]
    for name, row in table:
        reached, ratio, met = cells(row)
        lines.append(f"| [{name}]({link}/{row.file}) | {row.wanted} | {reached} | {ratio} | {met} |")
    return lines


def small_table(results: Path = RESULTS) -> str:
    """The README's rows. ValueError for more than fit on its screen."""
    chosen = [(row.readme, row) for row in rows(results)[0] if row.readme]
    if len(chosen) > README_ROWS:
        raise ValueError(f"{len(chosen)} targets have a `readme`; the README has room for {README_ROWS}")
    return "\n".join(table_lines("SmolLM2-135M on two CPU cores", chosen, "benchmarks/results"))


def whole_table(results: Path = RESULTS) -> str:
    """All targets by group, their sources, what stops those that were not reached, and the charts."""
    all_rows, files = rows(results)
    lines = []
    for group in dict.fromkeys(row.group for row in all_rows):
        named = [(row.text, row) for row in all_rows if row.group == group]
        lines += [*table_lines(group, named, "../benchmarks/results"), ""]
    lines += ["## Where the figures come from", ""]
    lines += [f"- `{name}`: {source(data)}" for name, data in files.items()]
    missed = [row for row in all_rows if row.met is False or (row.met is None and row.note)]
    if missed:
        lines += ["", "## What stops the targets that were not reached", ""]
        notes = dict.fromkeys(row.note or "Not known yet" for row in missed)
        for note in notes:
            names = "; ".join(row.text for row in missed if (row.note or "Not known yet") == note)
            lines.append(f"- **{names}.** {note}.")
    charts = [f"![{text}](../benchmarks/results/{name})" for name, text in CHARTS.items() if (results / name).exists()]
    if charts:
        lines += ["", "## Charts", "", "\n\n".join(charts)]
    return "\n".join(lines)


def source(data: Mapping[str, Any]) -> str:
    """Command, machine and day of a result file."""
    command = data.get("command", "")
    words = command if isinstance(command, str) else " ".join(command)
    machine = data.get("machine", {})
    where = f"{machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores"
    day = str(data.get("time") or data.get("date", ""))[:10]
    before = "; ".join(f"{load}: {when[:10]}" for load, when in data.get("measured_before", {}).items())
    return (
        f"`{words}`, {where}, {day}"
        + (f" (measured before, {before})" if before else "")
        + (" (tiny: no result)" if data.get("tiny") else "")
    )


def with_table(text: str, table: str) -> str:
    """A page with the table between its markers. ValueError without markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"a page with speed tables must hold {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """What README.md and docs/performance.md say with the tables of these results."""
    tables = {README: small_table(results), PERFORMANCE: whole_table(results)}
    return {page: with_table(page.read_text(), table) for page, table in tables.items()}


def write_pages(results: Path = RESULTS) -> None:
    """Put the tables of these results into both pages."""
    for page, text in pages(results).items():
        page.write_text(text)


def print_table(results: Path = RESULTS) -> None:
    """The same for a terminal, short."""
    table = Table("", "target", "reached", "ratio", "met", title="targets", title_justify="left")
    all_rows = rows(results)[0]
    for group in dict.fromkeys(row.group for row in all_rows):
        table.add_section()
        table.add_row(f"[bold]{group}")
        for row in (row for row in all_rows if row.group == group):
            table.add_row(row.text, row.wanted, *cells(row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or with --check 1 if a page says something else."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    if not args.check:
        write_pages()
        return 0
    stale = [page.relative_to(ROOT) for page, text in pages().items() if page.read_text() != text]
    for page in stale:
        print(f"{page}: its speed table is not that of the result files; run `python -m benchmarks.speed_table`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
