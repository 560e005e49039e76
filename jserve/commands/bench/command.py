"""`jserve bench serve`: measure a server that runs."""

import sys
from collections.abc import Sequence

from jserve.errors import StartupError


def run(argv: Sequence[str]) -> None:
    """Run the benchmark that the first word names. Raises StartupError for another one, or without what it needs."""
    words = list(argv)
    if not words or words[0] != "serve":
        named = f"{words[0]} is none" if words and not words[0].startswith("-") else "which benchmark?"
        raise StartupError(f"{named}: there is `jserve bench serve`, which measures a server that runs; see its --help")
    try:
        from jserve.commands.bench.serve import main
    except ModuleNotFoundError as error:
        raise StartupError(f"jserve bench needs {error.name}: pip install 'jserve[bench]'") from error
    sys.exit(main(words[1:]))
