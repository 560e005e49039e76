"""Tables on standard output: folded to a terminal's width, and never in a pipe, where a program reads line by line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_table(table: "Table") -> None:
    """Print a row a line where standard output is no terminal, whatever its width."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        unbounded = console.options.update(width=1 << 20)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)
