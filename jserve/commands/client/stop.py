"""`jserve stop MODEL`: end the server that `jserve run` has started for a model, once its answers are complete."""

import sys
from collections.abc import Sequence

from jserve.commands.client.local_servers import local_servers
from jserve.commands.parser import Parser


def run(argv: Sequence[str]) -> None:
    """Stop one or all. Leaves with 1 where there is none of that name, or one has not ended in its time."""
    parser = Parser(prog="jserve stop", description="Stop servers that `jserve run` has started.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as it was named to `jserve run`")
    parser.add_argument("--all", action="store_true", help="every one of them")
    options = parser.parse_args(list(argv))
    if (options.model is None) != options.all:
        parser.error("which one? Give the MODEL, or --all")
    running = list(local_servers())
    servers = [server for server in running if options.all or server.model == options.model]
    if not servers and not options.all:
        names = ", ".join(server.model for server in running) or "nothing"
        sys.exit(f"jserve: no server of `jserve run` serves {options.model}; running: {names}")
    stopped = [server.stop() for server in servers]
    if not all(stopped):
        sys.exit("jserve: a server is still finishing its answers; see `jserve ps`")
