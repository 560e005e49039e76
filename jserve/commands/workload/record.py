"""`jserve record`: stand in front of a server and write down its workload, without a word of what is said."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from jserve.commands.parser import Parser
from jserve.errors import StartupError
from jserve.log import set_up_logging

logger = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> None:
    """Record until stopped. Raises ConfigError for a bad URL or file, StartupError where the port is taken."""
    parser = Parser(
        prog="jserve record",
        description="Pass all traffic on to a server of any of the four APIs, unchanged, and write a line of JSON for "
        "each request: lengths, times and salted hashes, no text.",
        allow_abbrev=False,
    )
    parser.add_argument("--upstream", required=True, metavar="URL", help="the server, such as http://127.0.0.1:11434")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8001, metavar="N", help="to listen on (default: 8001)")
    parser.add_argument(
        "--out", type=Path, default=Path("workload.jsonl"), metavar="FILE", help="lines are added to it"
    )
    options = parser.parse_args(list(argv))
    set_up_logging("info", "text")
    from jserve.api.telemetry.workload import TraceFile
    from jserve.commands.workload.recorder import Recorder, Upstream, record

    upstream = Upstream(options.upstream)
    trace = TraceFile(options.out)
    recorder = Recorder(upstream, trace.write)

    def tell(port: int) -> None:
        logger.info(
            "recording http://%s:%d to %s: let clients use this address in place of %s; Ctrl-C ends",
            options.host, port, options.out, options.upstream,
        )  # fmt: skip

    async def serve() -> None:
        task = asyncio.create_task(record(recorder, options.host, options.port, tell))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    import uvloop

    try:
        uvloop.run(serve())
    except OSError as error:
        raise StartupError(f"port {options.port} on {options.host} cannot be listened on: {error}") from error
    finally:
        trace.close()
