"""Tables that a program reads have a line for each row, however long what stands in it."""

import pytest
from rich.table import Table

from jserve.commands.tables import print_table


@pytest.mark.parametrize("length", [1, 79, 199, 5_000])
def test_a_row_is_a_line_in_a_pipe(length: int, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("NAME", "PATH", box=None, pad_edge=False)
    table.add_row("one", "/" + "a" * length)
    table.add_row("two", "/b")
    print_table(table)
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "PATH"]
    assert [row.split() for row in rows] == [["one", "/" + "a" * length], ["two", "/b"]]
