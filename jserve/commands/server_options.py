"""Options about the server: where it listens, how long it waits, and what its answers hold."""

import argparse
import shlex
from pathlib import Path

from jserve.api.settings import DEFAULT_ENGINE_COMMAND
from jserve.commands.sizes import parse_duration, parse_size


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the group."""
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on; 0 takes a free one")
    group.add_argument(
        "--uds",
        type=Path,
        metavar="PATH",
        help="Unix socket to listen on in the place of --host and --port (default: none)",
    )
    group.add_argument(
        "--forwarded-allow-ips",
        default="127.0.0.1,::1",
        metavar="LIST",
        help="proxies whose X-Forwarded-For is believed: addresses and networks with commas between, '*' for all",
    )
    group.add_argument(
        "--health-when",
        choices=("alive", "ready"),
        default="alive",
        help="when /health says 200: while the engine process lives, or while requests are taken, for charts that "
        "route by it",
    )
    group.add_argument(
        "--root-path", type=_prefix, default="", metavar="PATH", help="prefix that a proxy in front takes away"
    )
    group.add_argument(
        "--no-ui", dest="ui", action="store_false", help="do not serve the page at /ui (default: served)"
    )
    group.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="private key for HTTPS (default: none)")
    group.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="certificate for HTTPS (default: none)")
    group.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help="connections that may be open at once; more are answered 503 (default: what the limit of open files "
        "allows, 16384 at most)",
    )
    group.add_argument(
        "--max-request-bytes",
        type=parse_size,
        default=32 << 20,
        metavar="SIZE",
        help="largest body of a request, such as 32MiB; above it the answer is 413",
    )
    group.add_argument(
        "--receive-timeout",
        dest="receive_timeout_s",
        type=float,
        default=20.0,
        metavar="S",
        help="seconds a client has to send a request's head, and in each of which its body must go on by 500 bytes",
    )
    group.add_argument(
        "--shutdown-timeout",
        dest="shutdown_timeout_s",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that open requests get at the end",
    )
    group.add_argument(
        "--exit-when-idle",
        dest="exit_when_idle_s",
        type=parse_duration,
        metavar="TIME",
        help="stop after so long without a request, such as 30m (default: never)",
    )
    group.add_argument(
        "--stall-timeout",
        dest="stall_timeout_s",
        type=float,
        default=60.0,
        metavar="S",
        help="silence of an engine with work after which /health/decode says 503",
    )
    group.add_argument(
        "--hang-timeout",
        dest="hang_timeout_s",
        type=float,
        default=300.0,
        metavar="S",
        help="silence of an engine with work after which it is killed and started again; 0 for never",
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
        dest="sse_keep_alive_interval_s",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds of silence after which a stream sends a comment, so that proxies do not end it; 0 for never",
    )
    group.add_argument(
        "--engine-command", type=shlex.split, default=list(DEFAULT_ENGINE_COMMAND), help=argparse.SUPPRESS
    )


def _prefix(text: str) -> str:
    return text.rstrip("/")
