"""The command line: every option with its group, its default and what it is good for.

A file given with `--config` holds the same names; the command line wins over it.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jserve.api.access.keys import read_key_file
from jserve.api.access.limits import Limits
from jserve.api.settings import DEFAULT_ENGINE_COMMAND, ServerSettings
from jserve.commands.access_options import add_access_options, add_observability_options, flatten
from jserve.commands.foreign_flags import hint_for
from jserve.commands.preset import config_path
from jserve.commands.sizes import parse_count, parse_size
from jserve.commands.speech_options import add_speech_options
from jserve.config import (
    DTYPES,
    KV_CACHE_DTYPES,
    LOAD_FORMATS,
    QUANTIZATIONS,
    STORED_QUANTIZATIONS,
    EngineConfig,
)
from jserve.errors import ConfigError
from jserve.version import __version__

_KEY_VARIABLES = ("JSERVE_API_KEY", "VLLM_API_KEY")
_DTYPE_ALIASES = {"half": "float16", "float": "float32"}
_KV_CACHE_ALIASES = {"fp8_e4m3": "fp8", "fp8_per_token_head": "fp8", "int8_per_token_head": "int8"}


def _dtype(text: str) -> str:
    return _DTYPE_ALIASES.get(text, text)


def kv_cache_dtype(text: str) -> str:
    """A value of `--kv-cache-dtype` in our spelling."""
    return _KV_CACHE_ALIASES.get(text, text)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults; None reads as the automatic choice that it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None and action.option_strings and "default" not in (action.help or ""):
            return f"{action.help} (default: auto)"
        if action.default == argparse.SUPPRESS or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(f"{prefix}-"):
            flag = message.removeprefix(prefix).split()[0]
            hint = hint_for(flag, self._option_string_actions)
            message = f"unknown flag {flag}" + (f": {hint}" if hint else "")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `jserve [serve] [MODEL] [options]`."""
    parser = Parser(
        prog="jserve",
        usage="jserve [serve] --model PATH [options]\n       jserve compile --model PATH --output DIR [options]\n"
        "       jserve convert SRC DST [--dtype TYPE] [--quantization KIND]\n"
        "       jserve quantize SRC DST --method awq|gptq [options]\n"
        "       jserve perplexity MODEL FILE [options]\n"
        "       jserve inspect PATH [--device NAME] [--tensor-parallel-size N] [--json]",
        description="Serve a language model over an OpenAI-compatible API.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_path", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"jserve {__version__}")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with the options below, or the name of a preset; the command line wins (default: none)",
    )
    _add_model_options(parser)
    _add_capacity_options(parser)
    add_speech_options(parser)
    _add_server_options(parser)
    add_access_options(parser)
    add_observability_options(parser)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and loading")
    group.add_argument(
        "--model", metavar="PATH", help="folder in Hugging Face format, GGUF file, or ollama:NAME (no default)"
    )
    group.add_argument("--dtype", type=_dtype, choices=DTYPES, default="auto", help="type of weights and activations")
    group.add_argument(
        "--quantization",
        choices=(*QUANTIZATIONS, *(name for name in STORED_QUANTIZATIONS if name not in QUANTIZATIONS)),
        help="round the weights of linear layers while loading: `int8` and `int4` (groups of up to 128 inputs) keep "
        "activations as they are, `int8-w8a8` and `fp8` round those too; the others say what the checkpoint is, which "
        "is seen without (default: as the checkpoint has them)",
    )
    group.add_argument(
        "--load-format",
        choices=LOAD_FORMATS,
        default="auto",
        help="`dummy` fills weights at random, to measure speed",
    )
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="names that requests may use, the first is the one in answers "
        "(default: the last part of the model's path)",
    )
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help="template (Jinja or Ollama's Go), or a file with one (default: the model's)",
    )
    group.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help="let requests bring a chat template of their own, which runs in a sandbox with limits",
    )
    group.add_argument(
        "--grammar-compile-timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="longest compilation of a request's grammar, regular expression or JSON schema",
    )
    group.add_argument(
        "--max-grammar-bytes",
        type=parse_size,
        default=1 << 20,
        metavar="SIZE",
        help="largest grammar, regular expression or JSON schema of a request",
    )
    group.add_argument(
        "--generation-config",
        default="auto",
        metavar="auto|vllm|FOLDER",
        help="source of default sampling: the model's generation_config.json, neutral values, or a folder",
    )
    group.add_argument(
        "--pooling",
        choices=("last", "mean", "cls"),
        help="what an embedding is made of: the hidden state of a text's last token, the mean of all, or that of the "
        "first (default: what a model for embeddings says, else last)",
    )
    group.add_argument(
        "--score-method",
        choices=("generative", "cosine"),
        default="generative",
        help="how /score and /rerank judge: by asking the model whether a document answers the query (the "
        "probability of yes against no), or by the cosine of two embeddings",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed for dummy weights and the like")
    group.add_argument(
        "--compile-cache-dir",
        metavar="DIR",
        help="where compiled programs are kept between starts (default: auto)",
    )
    group.add_argument(
        "--executables", metavar="DIR", help="programs that `jserve compile` made, only read (default: none)"
    )


def _add_capacity_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("capacity")
    group.add_argument(
        "--max-model-len",
        type=parse_count,
        metavar="N",
        help="longest prompt plus answer, in tokens, such as 8192 or 8K",
    )
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="most sequences computed at once")
    group.add_argument("--max-num-batched-tokens", type=parse_count, metavar="N", help="most tokens of one step")
    group.add_argument("--page-size", "--block-size", type=int, metavar="N", help="tokens of one KV page")
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.92,
        metavar="X",
        help="share of the GPU's memory to use",
    )
    group.add_argument(
        "--kv-cache-memory-bytes",
        type=parse_size,
        metavar="SIZE",
        help="memory for KV pages, such as 512M or 2GiB",
    )
    group.add_argument(
        "--kv-cache-dtype",
        type=kv_cache_dtype,
        choices=KV_CACHE_DTYPES,
        default="auto",
        help="type of keys and values: `fp8` (float8_e4m3fn) and `int8` take half the memory, with a scale for each "
        "token and KV head; `auto` is the type of the activations",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute a prompt's beginning once for all requests that share it",
    )
    group.add_argument(
        "--no-prefix-caching", dest="enable_prefix_caching", action="store_false", help=argparse.SUPPRESS
    )
    group.add_argument(
        "--tensor-parallel-size", "-tp", type=int, default=1, metavar="N", help="GPUs that share each layer"
    )
    group.add_argument(
        "--expert-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="parts of these GPUs that experts are dealt out over (default: each GPU has a slice of all experts)",
    )


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on; 0 takes a free one")
    group.add_argument("--root-path", default="", metavar="PATH", help="prefix that a proxy in front takes away")
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="private key for HTTPS (default: none)")
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="certificate for HTTPS (default: none)")
    group.add_argument(
        "--max-request-bytes",
        type=parse_size,
        default=32 << 20,
        metavar="SIZE",
        help="largest body of a request, such as 32MiB; above it the answer is 413",
    )
    group.add_argument(
        "--receive-timeout",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds a client has to send a request's head, and its body (plus a second per 500 bytes)",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that open requests get at the end",
    )
    group.add_argument(
        "--stall-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="silence after which /health/decode says 503",
    )
    group.add_argument(
        "--enable-prompt-tokens-details", action="store_true", help="report cached prompt tokens in usage"
    )
    group.add_argument(
        "--enable-force-include-usage", action="store_true", help="end every stream with the usage, asked for or not"
    )
    group.add_argument(
        "--enable-per-request-metrics",
        action="store_true",
        help="tell the times of a request in its answer (`metrics`)",
    )
    group.add_argument(
        "--stream-interval",
        type=int,
        default=1,
        metavar="N",
        help="tokens per event of a stream; the first comes at once",
    )
    group.add_argument(
        "--sse-keep-alive-interval",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds of silence after which a stream sends a comment, so that proxies do not end it; 0 for never",
    )
    group.add_argument("--engine-command", type=shlex.split, help=argparse.SUPPRESS)


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerSettings]:
    """Read the command line and the file that it names.

    Leaves with code 2 where a flag is not one (argparse), raises ConfigError where values are impossible.
    """
    parser = build_parser()
    arguments = list(argv[1:] if argv[:1] == ["serve"] else argv)
    options = parser.parse_args(arguments)
    if options.config is not None:
        given = _given_options(arguments)
        options = parser.parse_args([*_from_file(parser, config_path(options.config), given), *arguments])
    if options.model and options.model_path and options.model != options.model_path:
        parser.error(f"two models: {options.model_path} and --model {options.model}")
    options.model = options.model or options.model_path
    if not options.model:
        parser.error("which model? Give a folder, a GGUF file or ollama:NAME: jserve --model PATH")
    return _engine_config(options), _server_settings(options)


def _given_options(arguments: Sequence[str]) -> set[str]:
    """Names of the options that the command line itself sets."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(arguments)))


def _from_file(parser: argparse.ArgumentParser, path: Path, given: set[str]) -> list[str]:
    """The file's options as command line arguments, without those that the command line sets itself."""
    arguments: list[str] = []
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version", "config"):
            actions.setdefault(action.dest, action)
    for key, value in _read_yaml(path).items():
        dest = str(key).replace("-", "_")
        if dest not in actions:
            flags = [flag for action in actions.values() for flag in action.option_strings]
            hint = hint_for(f"--{dest.replace('_', '-')}", flags)
            raise ConfigError(f"{path}: unknown option {key!r}" + (f": {hint}" if hint else ""))
        if dest not in given and not (dest == "model" and "model_path" in given) and value is not None:
            arguments += _as_arguments(actions[dest], value, path)
    return arguments


def _as_arguments(action: argparse.Action, value: Any, path: Path) -> list[str]:
    flag = next(option for option in action.option_strings if option.startswith("--"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {flag[2:]} is {value!r} but must be true or false")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [flag if value else f"--no-{flag[2:]}"]
        return [flag] if value else []
    if isinstance(value, list):
        return [flag, *map(str, value)]
    if isinstance(value, dict):
        raise ConfigError(f"{path}: {flag[2:]} must be a single value, not a mapping")
    return [f"{flag}={value}"]


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold `name: value` lines, not a {type(content).__name__}")
    return content


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(**{name: getattr(options, name) for name in EngineConfig.__struct_fields__})


def _server_settings(options: argparse.Namespace) -> ServerSettings:
    _check_parser_names(options)
    return ServerSettings(
        model=options.model,
        served_model_names=tuple(options.served_model_name or ()),
        host=options.host,
        port=options.port,
        root_path=options.root_path.rstrip("/"),
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
        api_keys=_api_keys(options),
        api_key_file=options.api_key_file,
        metrics_without_key=options.metrics_without_key,
        limits=_limits(options.limits),
        cache_isolation=options.cache_isolation,
        max_queued_requests=options.max_queued_requests,
        max_queued_tokens=options.max_queued_tokens,
        allowed_origins=flatten(options.allowed_origins),
        allowed_methods=flatten(options.allowed_methods),
        allowed_headers=flatten(options.allowed_headers),
        allow_credentials=options.allow_credentials,
        chat_template=options.chat_template,
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        exclude_tools_when_none=options.exclude_tools_when_tool_choice_none,
        trust_request_chat_template=options.trust_request_chat_template,
        generation_config=options.generation_config,
        pooling=options.pooling,
        score_method=options.score_method,
        grammar_compile_timeout_s=options.grammar_compile_timeout,
        max_grammar_bytes=options.max_grammar_bytes,
        max_request_bytes=options.max_request_bytes,
        receive_timeout_s=options.receive_timeout,
        shutdown_timeout_s=options.shutdown_timeout,
        stall_timeout_s=options.stall_timeout,
        enable_prompt_tokens_details=options.enable_prompt_tokens_details,
        enable_force_include_usage=options.enable_force_include_usage,
        enable_per_request_metrics=options.enable_per_request_metrics,
        stream_interval=options.stream_interval,
        sse_keep_alive_interval_s=options.sse_keep_alive_interval,
        log_level=options.log_level,
        log_format=options.log_format,
        enable_log_requests=options.enable_log_requests,
        otlp_traces_endpoint=options.otlp_traces_endpoint,
        engine_command=tuple(options.engine_command or DEFAULT_ENGINE_COMMAND),
    )


def _check_parser_names(options: argparse.Namespace) -> None:
    """Names of parsers; those that know them are imported only where there is one, to start sooner."""
    if (options.tool_call_parser, options.reasoning_parser) != ("auto", "auto"):
        from jserve.api.model.speech import check_parser_names

        check_parser_names(options.tool_call_parser, options.reasoning_parser)


def _limits(path: Path | None) -> Limits | None:
    if path is None:
        return None
    from jserve.api.access.limits_file import read_limits

    return read_limits(path)


def _api_keys(options: argparse.Namespace) -> tuple[str, ...]:
    """Keys given by flag; the environment counts where no flag speaks of keys. A file that is wrong is told here."""
    if options.api_key_file is not None:
        read_key_file(options.api_key_file)
        return tuple(options.api_key or ())
    return tuple(options.api_key or [key for name in _KEY_VARIABLES if (key := os.environ.get(name))][:1])
