"""The command line's options for who may come in, how much they may ask, and what is told about it."""

import argparse
import json
from pathlib import Path

from jserve.log import LOG_FORMATS

LOG_LEVELS = ("debug", "info", "warning", "error")


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Keys, limits, admission, browsers."""
    group = parser.add_argument_group("access")
    group.add_argument(
        "--api-key",
        dest="api_keys",
        default=[],
        metavar="KEY",
        nargs="+",
        action="extend",
        help="keys that clients may use (default: $JSERVE_API_KEY or $VLLM_API_KEY, else no key is needed)",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys, one per line, # begins a comment; read again on SIGHUP (default: none)",
    )
    group.add_argument("--metrics-without-key", action="store_true", help="let /metrics be read without a key")
    group.add_argument(
        "--limits",
        type=Path,
        metavar="FILE",
        help="YAML file with what each key may use: requests and tokens per minute, sequences at once, priority "
        "(default: none)",
    )
    group.add_argument(
        "--cache-isolation",
        choices=("key", "none"),
        default="key",
        help="whether cached prefixes are shared only under the same key, or by all clients",
    )
    group.add_argument(
        "--max-queued-requests",
        type=int,
        metavar="N",
        help="sequences that may wait before more are answered 503 (default: no limit)",
    )
    group.add_argument(
        "--max-queued-tokens",
        type=int,
        metavar="N",
        help="prompt tokens that may wait for their first token before more are answered 503 (default: no limit)",
    )
    group.add_argument(
        "--allowed-hosts",
        nargs="+",
        type=_names,
        default=[],
        metavar="NAME",
        help="names of this server that requests may carry in `Host`, '*' for all (default: all where a key is needed; "
        "else, over loopback, localhost and others that no web site can take)",
    )
    for flag, default, what in (
        ("--allowed-origins", [], "web sites whose scripts may call (CORS), '*' for all (default: none)"),
        ("--allowed-methods", ["*"], "methods that these may use (default: all)"),
        ("--allowed-headers", ["*"], "headers that these may send (default: all)"),
    ):
        group.add_argument(flag, nargs="+", type=_names, default=default, metavar="NAME", help=what)
    group.add_argument("--allow-credentials", action="store_true", help="let these send cookies")


def add_observability_options(parser: argparse.ArgumentParser) -> None:
    """Logs and traces."""
    group = parser.add_argument_group("logs and traces")
    group.add_argument(
        "--log-level", type=str.lower, choices=LOG_LEVELS, default="info", help="least important messages to show"
    )
    group.add_argument("--log-format", choices=LOG_FORMATS, default="text", help="lines for people, or JSON objects")
    group.add_argument(
        "--enable-log-requests", action="store_true", help="log what a request asks for, without its content"
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="OpenTelemetry collector that gets a span per request, over HTTP (default: none)",
    )


def flatten(values: list[list[str] | str]) -> tuple[str, ...]:
    """The names that `nargs="+"` of `_names` leads to."""
    return tuple(name for value in values for name in ([value] if isinstance(value, str) else value))


def _names(text: str) -> list[str]:
    """A name, or a JSON list of names, as vLLM takes it."""
    if not text.startswith("["):
        return [text]
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON list of strings")
    return names
