"""The `jserve` command: finds the subcommand by its name and runs it; without one, it serves. Never imports jax."""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from jserve.errors import JserveError
from jserve.log import writes_json

COMMANDS = {
    "compile": "jserve.commands.compile",
    "convert": "jserve.commands.convert",
    "inspect": "jserve.commands.inspect",
    "key": "jserve.commands.key",
    "perplexity": "jserve.commands.perplexity",
    "run-batch": "jserve.commands.run_batch",
    "quantize": "jserve.commands.quantize.command",
}
"""Each module has a `run(argv)`. It is imported only when it is asked for: a start must not wait for the others."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Leaves with 0 after a graceful stop, 1 where it cannot go on, 2 for a bad flag."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except JserveError as error:
        if writes_json():
            logging.getLogger(__name__).critical("%s", error)
        else:
            print(f"jserve: {error}", file=sys.stderr)
        sys.exit(1)


def run(argv: Sequence[str]) -> None:
    """Run the subcommand that `argv` begins with, else the server. Raises StartupError where that is not possible."""
    module = COMMANDS.get(argv[0]) if argv else None
    if module is None:
        import_module("jserve.commands.serve").run(argv)
    else:
        import_module(module).run(argv[1:])
