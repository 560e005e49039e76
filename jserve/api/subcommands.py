"""The command lines of `jserve compile` and `jserve inspect`."""

from collections.abc import Sequence
from pathlib import Path

from jserve.api.options import Parser, parse
from jserve.config import DTYPES, EngineConfig

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
    return parse(rest)[0], options.output


def parse_inspect(argv: Sequence[str]) -> tuple[EngineConfig, str, bool]:
    """Read the command line of `jserve inspect`: the model, the device to plan for, and whether JSON is wanted."""
    parser = Parser(
        prog="jserve inspect",
        description="Say what a model's files hold, whether jserve runs them, and how many tokens fit on a device. "
        "Reads headers, no weights.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="folder in Hugging Face format, GGUF file, or ollama:NAME")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu (default), h200, h100, a100-80, l40s, rtx4090 and others"
    )
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, metavar="N", help="devices (default: 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="type of weights (default: auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(argv))
    config = EngineConfig(model=options.path, dtype=options.dtype, tensor_parallel_size=options.tensor_parallel_size)
    return config, options.device.lower(), options.json
