"""`jserve compile`: every program of a server into a folder, ahead of its first start."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jserve.api.settings import DEFAULT_ENGINE_COMMAND
from jserve.commands.hub_model import with_local_files
from jserve.commands.options import parse
from jserve.commands.parser import Parser
from jserve.config import EngineConfig

_COMPILE_HELP = """usage: jserve compile --model PATH --output DIR [options of the server]

Compile all programs of a server into a folder, from the model's configuration and without its weights. A server
on such a machine that is started with the same options and `--executables DIR` then compiles nothing.

options:
  --output DIR  where the programs go; what is there already is kept
  the others    those of the server, see `jserve --help`
"""


def parse_compile(argv: Sequence[str]) -> tuple[EngineConfig, Path]:
    """Read the command line of `jserve compile`: that of a server, which it is for, and the folder to fill."""
    own = Parser(prog="jserve compile", add_help=False, allow_abbrev=False)
    own.add_argument("--output", type=Path, metavar="DIR")
    if {"-h", "--help"} & set(argv):
        own.exit(message=_COMPILE_HELP)
    options, rest = own.parse_known_args(list(argv))
    if options.output is None:
        own.error("where to? Give a folder: jserve compile --model PATH --output DIR")
    return with_local_files(*parse(rest))[0], options.output


def run(argv: Sequence[str]) -> None:
    """Have the engine's process compile every program into a folder. Exits with 1 where it could not."""
    config, folder = parse_compile(argv)
    command = [*DEFAULT_ENGINE_COMMAND, "--compile-into", str(folder)]
    code = subprocess.run(command, input=msgspec.json.encode(config), check=False).returncode
    if code:
        sys.exit(1)
