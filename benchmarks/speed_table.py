"""The README's speed table, out of `targets.toml` and the result files.

    python -m benchmarks.speed_table            write it between the markers in README.md
    python -m benchmarks.speed_table --check    exit status 1 if it does not say what the result files give

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
CHART = "cpu-serving.png"
BEGIN = "<!-- speed: written by `python -m benchmarks.speed_table` out of benchmarks/results -->"
END = "<!-- /speed -->"


@dataclass(frozen=True, slots=True)
class PromptRead:
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
    prompt_reads: tuple[PromptRead, ...]
    met: bool | None
    note: str


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
    prompt_reads = []
    for variant in target.get("variants", [""]):

        def figure(key: str, variant: str = variant) -> float | None:
            return find(data, target[key].replace("{variant}", variant)) if key in target else None

        value, peer, ratio = figure("value"), figure("peer"), figure("ratio")
        if ratio is None and value is not None and peer:
            ratio = value / peer
        if value is not None or ratio is not None:
            prompt_reads.append(PromptRead(variant, value, ratio))
    return Row(
        target["group"],
        target["text"],
        wanted_text(target),
        target.get("ratio_at_least", target.get("ratio_at_most")),
        target.get("unit", ""),
        target["file"],
        tuple(prompt_reads),
        verdict(target, prompt_reads),
        target.get("note", ""),
    )


def verdict(target: Mapping[str, Any], prompt_reads: Sequence[PromptRead]) -> bool | None:
    """Whether the target is met, by the variant named first; all of its limits count."""
    if not prompt_reads:
        return None
    first = prompt_reads[0]
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
    if not row.prompt_reads:
        return "not measured", "", ""
    first, *others = row.prompt_reads
    reached = f"{number(first.value)} {row.unit}".strip() if first.value is not None else ""
    ratio = f"{first.ratio:.2f} x" if first.ratio is not None else ""
    for other in others:
        reached += f" ({other.variant}: {number(other.value)})" if other.value is not None else ""
        ratio += f" ({other.ratio:.2f} x)" if other.ratio is not None else ""
    return reached, ratio, {True: "yes", False: "no", None: ""}[row.met]


def markdown(results: Path = RESULTS) -> str:
    """The table with its sources, and what stops the targets that were not reached."""
    found, files = rows(results)
    lines = []
    for group in dict.fromkeys(row.group for row in found):
        lines += [f"| {group} | target | reached | ratio | met |", "|---|---|---|---|---|"]
        for row in (row for row in found if row.group == group):
            reached, ratio, met = cells(row)
            name = f"[{row.text}](benchmarks/results/{row.file})" if row.file in files else row.text
            lines.append(f"| {name} | {row.wanted} | {reached} | {ratio} | {met} |")
        lines.append("")
    lines += [f"- `{name}`: {source(data)}" for name, data in files.items()]
    missed = [row for row in found if row.met is False or (row.met is None and row.note)]
    if missed:
        lines += ["", "What stops those that were not reached:", ""]
        notes = dict.fromkeys(row.note or "not known yet" for row in missed)
        for note in notes:
            lines.append(f"- {'; '.join(row.text for row in missed if (row.note or 'not known yet') == note)}: {note}")
    if (results / CHART).exists():
        lines += ["", f"![output tokens/s against the time per output token](benchmarks/results/{CHART})"]
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
    """The README with the table between its markers. ValueError without markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md must hold {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def write_readme(results: Path = RESULTS) -> None:
    """Put the table of these results into the README."""
    README.write_text(with_table(README.read_text(), markdown(results)))


def print_table(results: Path = RESULTS) -> None:
    """The same for a terminal, short."""
    table = Table("", "target", "reached", "ratio", "met", title="targets", title_justify="left")
    found = rows(results)[0]
    for group in dict.fromkeys(row.group for row in found):
        table.add_section()
        table.add_row(f"[bold]{group}")
        for row in (row for row in found if row.group == group):
            table.add_row(row.text, row.wanted, *cells(row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or with --check 1 if the README says something else."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    if not args.check:
        write_readme()
        return 0
    text = README.read_text()
    same = text == with_table(text, markdown())
    if not same:
        print("README.md's speed table is not that of the result files; run `python -m benchmarks.speed_table`")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
