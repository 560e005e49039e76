"""Tables of what `sampler/sitecustomize.py` has written: where the main thread of a process spent its CPU time."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

_SHOWN = 28


@dataclass(frozen=True, slots=True)
class StackTable:
    """CPU seconds by function: spent in itself (with what it calls in C), and with everything below it."""

    title: str
    total: float
    own: dict[str, float]
    below: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> "StackTable":
        """The samples of one process."""
        written = json.loads(path.read_text())
        own: Counter[str] = Counter()
        below: Counter[str] = Counter()
        for sample in written["stacks"]:
            frames = [_short(frame) for frame in sample["stack"]]
            if frames:
                own[frames[0]] += sample["seconds"]
            for function in {_function(frame) for frame in frames}:
                below[function] += sample["seconds"]
        total = sum(sample["seconds"] for sample in written["stacks"])
        return cls(" ".join(written["command"][:2]), total, dict(own), dict(below))

    def print(self, console: Console, *, scale: float, unit: str) -> None:
        """Both tables; seconds times `scale` are `unit`."""
        console.print(f"main thread: {self.total:.2f} s of CPU = {self.total * scale:.2f} {unit}", highlight=False)
        for title, seconds in (("by line", self.own), ("by function, with what it calls", self.below)):
            table = Table(title=title, title_justify="left", box=None)
            table.add_column(unit, justify="right")
            table.add_column("share", justify="right")
            table.add_column("where")
            for where, value in sorted(seconds.items(), key=lambda item: -item[1])[:_SHOWN]:
                table.add_row(f"{value * scale:.2f}", f"{value / self.total:.1%}", where)
            console.print(table)


def _short(frame: str) -> str:
    """The last two parts of the path, the line, and the function."""
    path, line, function = frame.rsplit(":", 2)
    return f"{'/'.join(Path(path).parts[-2:])}:{line} {function}"


def _function(frame: str) -> str:
    place, _, function = frame.partition(" ")
    return f"{place.rpartition(':')[0]} {function}"
