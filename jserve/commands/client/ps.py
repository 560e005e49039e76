"""`jserve ps`: the servers that `jserve run` has started and that still run."""

import time
from collections.abc import Sequence

from jserve.commands.client.local_servers import local_servers
from jserve.commands.parser import Parser
from jserve.commands.tables import print_table


def run(argv: Sequence[str]) -> None:
    """Print a line for each."""
    Parser(prog="jserve ps", description="List the servers that `jserve run` has started.").parse_args(list(argv))
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("MODEL", "URL", "PID", "UP", "LOG"):
        table.add_column(column, overflow="fold")
    for server in local_servers():
        minutes, seconds = divmod(int(time.time() - server.started), 60)
        table.add_row(server.model, server.url, str(server.pid), f"{minutes}:{seconds:02}", server.log)
    print_table(table)
