"""The command lines of `jserve compile`, `jserve convert` and `jserve inspect`."""

from collections.abc import Sequence
from pathlib import Path

from jserve.api.options import Parser, kv_cache_dtype, parse
from jserve.config import DTYPES, KV_CACHE_DTYPES, EngineConfig

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
    parser.add_argument(
        "--kv-cache-dtype",
        type=kv_cache_dtype,
        choices=KV_CACHE_DTYPES,
        default="auto",
        help="type of keys and values (default: auto)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(argv))
    config = EngineConfig(
        model=options.path,
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    return config, options.device.lower(), options.json


def parse_convert(argv: Sequence[str]) -> tuple[EngineConfig, Path]:
    """Read the command line of `jserve convert`: the model and the folder to write."""
    parser = Parser(
        prog="jserve convert",
        description="Write a model as it is served, fused and in the layout of devices, with its tokenizer: "
        "`jserve --model DST` starts from it on any number of devices.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="folder in Hugging Face format, GGUF file, or ollama:NAME")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of weights (default: the checkpoint's; bfloat16 of a GGUF)",
    )
    options = parser.parse_args(list(argv))
    return EngineConfig(model=options.source, dtype=options.dtype), options.target
