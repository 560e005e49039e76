"""The command line of a server: all of its options, and what they mean to the engine and to the server.

A file given with `--config` holds the same names; the command line wins over it.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jserve.api.access.key_file import read_key_file
from jserve.api.access.limits import Limits
from jserve.api.settings import ServerSettings
from jserve.commands.access_options import add_access_options, add_observability_options, flatten
from jserve.commands.capacity_options import add_capacity_options
from jserve.commands.model_options import add_model_options
from jserve.commands.options_file import arguments_of_file
from jserve.commands.parser import Formatter, Parser
from jserve.commands.preset import config_path
from jserve.commands.server_options import add_server_options
from jserve.commands.speech_options import add_speech_options
from jserve.commands.storage_options import add_storage_options
from jserve.config import EngineConfig
from jserve.version import __version__

_KEY_VARIABLES = ("JSERVE_API_KEY", "VLLM_API_KEY")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `jserve [serve] [MODEL] [options]`."""
    parser = Parser(
        prog="jserve",
        usage="jserve [serve] --model PATH [options]\n       jserve compile --model PATH --output DIR [options]\n"
        "       jserve convert SRC DST [--dtype TYPE] [--quantization KIND]\n"
        "       jserve quantize SRC DST --method awq|gptq [options]\n"
        "       jserve perplexity MODEL FILE [options]\n"
        "       jserve inspect PATH [--device NAME] [--tensor-parallel-size N] [--json]\n"
        "       jserve run-batch -i IN -o OUT --model PATH [options]\n"
        "       jserve key new|list|revoke|rotate [NAME] --api-key-file FILE [options]",
        description="Serve a language model over an OpenAI-compatible API.",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_path", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"jserve {__version__}")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with the options below, or the name of a preset; the command line wins (default: none)",
    )
    add_model_options(parser)
    add_capacity_options(parser)
    add_speech_options(parser)
    add_server_options(parser)
    add_access_options(parser)
    add_storage_options(parser)
    add_observability_options(parser)
    return parser


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerSettings]:
    """Read the command line and the file that it names.

    Leaves with code 2 where a flag is not one (argparse), raises ConfigError where values are impossible.
    """
    parser = build_parser()
    arguments = list(argv[1:] if argv[:1] == ["serve"] else argv)
    options = parser.parse_args(arguments)
    if options.config is not None:
        from_file = arguments_of_file(parser, config_path(options.config), _options_of_flags(arguments))
        options = parser.parse_args([*from_file, *arguments])
    if options.model and options.model_path and options.model != options.model_path:
        parser.error(f"two models: {options.model_path} and --model {options.model}")
    options.model = options.model or options.model_path
    if not options.model:
        parser.error("which model? Give a folder, a GGUF file or ollama:NAME: jserve --model PATH")
    return _engine_config(options), _server_settings(options)


def _options_of_flags(arguments: Sequence[str]) -> set[str]:
    """Names of the options that the command line itself sets."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(arguments)))


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(**{name: getattr(options, name) for name in EngineConfig.__struct_fields__})


def _server_settings(options: argparse.Namespace) -> ServerSettings:
    _check_parser_names(options)
    values = {name: value for name, value in vars(options).items() if name in ServerSettings.__struct_fields__}
    lists = {name: flatten(value) for name, value in values.items() if isinstance(value, list)}
    return ServerSettings(**(values | lists | _access(options)))


def _check_parser_names(options: argparse.Namespace) -> None:
    """Names of parsers; those that know them are imported only where there is one, to start sooner."""
    if (options.tool_call_parser, options.reasoning_parser) != ("auto", "auto"):
        from jserve.api.model.speech import check_parser_names

        check_parser_names(options.tool_call_parser, options.reasoning_parser)


def _access(options: argparse.Namespace) -> dict[str, Any]:
    return {"api_keys": _api_keys(options), "limits": _limits(options.limits), "limits_file": options.limits}


def _limits(path: Path | None) -> Limits | None:
    if path is None:
        return None
    from jserve.api.access.limits_file import read_limits

    return read_limits(path)


def _api_keys(options: argparse.Namespace) -> tuple[str, ...]:
    """Keys given by flag; the environment counts where no flag speaks of keys. A file that is wrong is told here."""
    if options.api_key_file is not None:
        read_key_file(options.api_key_file)
        return tuple(options.api_keys)
    return tuple(options.api_keys or [key for name in _KEY_VARIABLES if (key := os.environ.get(name))][:1])
