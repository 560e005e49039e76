"""The `jserve` command: finds the subcommand by its name and runs it; without one, it serves. Never imports jax."""

import logging
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from jserve.commands.names import COMMANDS, FOREIGN_COMMANDS
from jserve.errors import JserveError, StartupError
from jserve.log import writes_json


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


def _is_bare(word: str) -> bool:
    """Whether it is a word, and neither a flag, nor a path, nor a name of two parts."""
    return not word.startswith("-") and not set("/:.") & set(word)


def run(argv: Sequence[str]) -> None:
    """Run the subcommand that `argv` begins with, else the server. Raises StartupError where that is not possible."""
    word = argv[0] if argv else ""
    if word in FOREIGN_COMMANDS:
        raise StartupError(f"there is no command {word}: {FOREIGN_COMMANDS[word]}")
    module = COMMANDS.get(word)
    if module is None and word not in ("", "serve") and _is_bare(word) and not Path(word).exists():
        near = get_close_matches(word, COMMANDS, n=1)
        raise StartupError(
            f"{word} is no command, and no folder or file here{f'; did you mean {near[0]}?' if near else ''}. "
            f"A model is given as PATH, as ollama:{word} where Ollama has pulled it, or as ORG/NAME from the hub"
        )
    if module is None:
        import_module("jserve.commands.serve").run(argv)
    else:
        import_module(module).run(argv[1:])
