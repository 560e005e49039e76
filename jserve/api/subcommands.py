"""The command lines of `jserve compile`, `convert`, `inspect`, `perplexity` and `quantize`."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from jserve.commands.options import Parser, kv_cache_dtype, parse
from jserve.commands.sizes import parse_count
from jserve.config import DTYPES, KV_CACHE_DTYPES, QUANTIZATIONS, QUANTIZE_BITS, EngineConfig, QuantizeConfig

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
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="round the weights of linear layers (default: as the checkpoint has them)",
    )
    options = parser.parse_args(list(argv))
    config = EngineConfig(model=options.source, dtype=options.dtype, quantization=options.quantization)
    return config, options.target


_PERPLEXITY_HELP = """usage: jserve perplexity MODEL FILE [--sequence-length N] [--json] [options of the server]

Say how well a model predicts a text, through the path that answers requests: with --quantization, --dtype and
whatever else a server takes, each the better the lower.

arguments:
  MODEL                folder in Hugging Face format, GGUF file, or ollama:NAME
  FILE                 text in UTF-8
options:
  --sequence-length N  tokens of a stretch, at whose beginning nothing is known (default: 512)
  --json               print one JSON object
  the others           those of the server, see `jserve --help`
"""


def parse_perplexity(argv: Sequence[str]) -> tuple[EngineConfig, Path, int, bool]:
    """Read the command line of `jserve perplexity`: the model with a server's options, the text, the length of a
    stretch, and whether JSON is wanted.
    """
    own = Parser(prog="jserve perplexity", add_help=False, allow_abbrev=False)
    own.add_argument("--sequence-length", type=parse_count, default=512, metavar="N")
    own.add_argument("--json", action="store_true")
    if {"-h", "--help"} & set(argv):
        own.exit(message=_PERPLEXITY_HELP)
    if len(argv) < 2 or any(name.startswith("-") for name in argv[:2]):
        own.error("which model, and which text? Begin with both: jserve perplexity MODEL FILE")
    options, rest = own.parse_known_args(list(argv[2:]))
    if options.sequence_length < 2:
        own.error(f"--sequence-length is {options.sequence_length} but must be at least 2")
    return parse(["--model", argv[0], *rest])[0], Path(argv[1]), options.sequence_length, options.json


def parse_quantize(argv: Sequence[str]) -> tuple[QuantizeConfig, Path, Path | None, Path | None]:
    """Read the command line of `jserve quantize`: the model and how, the folder to write, the text to learn on, and
    one to judge by.
    """
    parser = Parser(
        prog="jserve quantize",
        description="Write a model with the weights of its linear layers in 4 or 8 bits, learned on a text, as a "
        "Hugging Face folder in the published layout of the method, which other engines load too.",
        allow_abbrev=False,
    )
    defaults = {field.name: field.default for field in msgspec.structs.fields(QuantizeConfig)}
    parser.add_argument("source", metavar="SRC", help="folder in Hugging Face format, GGUF file, or ollama:NAME")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--method",
        choices=tuple(QUANTIZE_BITS),
        required=True,
        help="awq: scales of channels and ranges of groups by gradient descent, 4 bits with zero points; "
        "gptq: rounding whose errors later inputs make up for, 4 or 8 bits about zero",
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="of a weight (default: 4)")
    parser.add_argument(
        "--group-size", type=int, metavar="N", help="inputs that share a scale (default: the most of 128 that divide)"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="what to learn on (default: six chapters of Alice in Wonderland)"
    )
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="text for the perplexity before and after")
    for flag, kind, said in (
        ("samples", int, "stretches of the text, at most"),
        ("sequence-length", parse_count, "tokens of each"),
        ("steps", int, "of Adam, awq only; 0 only tries AWQ's own scales"),
        ("learning-rate", float, "of Adam"),
    ):
        default = defaults[flag.replace("-", "_")]
        parser.add_argument(f"--{flag}", type=kind, default=default, metavar="N", help=f"{said} (default: {default})")
    options = vars(parser.parse_args(list(argv)))
    source, target, text, evaluate = (options.pop(name) for name in ("source", "target", "text", "evaluate"))
    return QuantizeConfig(model=source, **options), target, text, evaluate
