"""`jserve run-batch -i IN -o OUT --model PATH`: the requests of a file, as OpenAI's batches have them, are answered.

What is answered is kept in OUT.progress until OUT is written, whole. So a command that was ended, however it was, goes
on where it stopped when it is run again. Never imports jax.
"""

import argparse
import asyncio
import hashlib
import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jserve.api.settings import ServerSettings
from jserve.commands.options import parse
from jserve.commands.parser import Formatter, Parser
from jserve.config import EngineConfig
from jserve.errors import ConfigError, EngineUnavailableError, StartupError
from jserve.log import set_up_logging

if TYPE_CHECKING:
    from jserve.api.server import Server
    from jserve.api.supervisor.process import LaunchedEngine

logger = logging.getLogger(__name__)

_BATCH = "run"
_LOOK_S = 0.05
_TELL_S = 10.0


def run(argv: Sequence[str]) -> None:
    """Answer a file. Raises StartupError."""
    options, others = _parser().parse_known_args(argv)
    config, settings = parse(others)
    set_up_logging(settings.log_level, settings.log_format)
    source, target = options.input_file, options.output_file
    progress = target.with_name(f"{target.name}.progress")
    num_lines = _check_input(source, settings)
    _claim(progress, source)
    from jserve.api.http.descriptors import raise_descriptor_limit
    from jserve.api.http.listener import listen_on
    from jserve.api.supervisor.process import launch_engine

    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="jserve-") as folder:
        settings = msgspec.structs.replace(settings, uds=Path(folder) / "socket", storage_dir=progress)
        listener = listen_on(settings)
        launched = launch_engine(settings.engine_command, config)
        try:
            import uvloop

            uvloop.run(_answer(config, settings, listener, launched, source, target, num_lines))
        finally:
            listener.close()
            if launched.popen.poll() is None:
                launched.popen.kill()
    shutil.rmtree(progress)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jserve run-batch",
        description="Answer a file of requests. All options of the server are taken too (jserve --help).",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input-file", type=Path, required=True, metavar="IN", help="requests, one JSON a line")
    parser.add_argument("-o", "--output-file", type=Path, required=True, metavar="OUT", help="where the answers go")
    return parser


def _check_input(source: Path, settings: ServerSettings) -> int:
    """How many lines the input has. Raises ConfigError for what is wrong with it, before anything is loaded."""
    from jserve.api.openai.batch.answering import URLS
    from jserve.api.openai.batch.lines import check_lines

    try:
        checked = asyncio.run(check_lines(source, None, URLS, settings.max_request_bytes))
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error}") from error
    if checked.errors:
        shown = "; ".join(f"line {error.number}: {error.message}" for error in checked.errors)
        raise ConfigError(f"{source} cannot be answered: {shown}")
    return checked.num_lines


def _claim(progress: Path, source: Path) -> None:
    """Make the folder of the progress, or see that it is of the same input. Raises ConfigError."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    mark = progress / "input.sha256"
    try:
        progress.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            mark.write_text(digest)
        elif mark.read_text() != digest:
            raise ConfigError(f"{progress} is the progress of another input; delete it, or choose another output")
    except OSError as error:
        raise ConfigError(f"{progress} cannot be written: {error}") from error


async def _answer(
    config: EngineConfig,
    settings: ServerSettings,
    listener: socket.socket,
    launched: "LaunchedEngine",
    source: Path,
    target: Path,
    num_lines: int,
) -> None:
    """Serve, on a socket that nobody knows, until all lines are answered and written."""
    from jserve.api.access.keys import ANYBODY
    from jserve.api.openai.batch.answering import BatchInput, LineAnswerer
    from jserve.api.openai.batch.pace import Pace
    from jserve.api.server import Server

    server = Server(config, settings, listener, launched)
    context = server.context
    answerer = LineAnswerer(context, Pace(context.generator, context.client, share=1))
    batch = BatchInput(_BATCH, source, None, lambda: ANYBODY)

    async def work() -> None:
        await _until_ready(server)
        teller = asyncio.create_task(_tell(server, num_lines))
        await answerer.answer_all(batch)
        teller.cancel()
        await context.store.batches.write_all(_BATCH, target)
        logger.info("%d lines are answered, in %s", num_lines, target)

    serving, working = asyncio.create_task(server.run()), asyncio.create_task(work())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, working.cancel)
    await asyncio.wait({serving, working}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        working.cancel()
    else:
        await asyncio.wait({working})
        server.stop()
    await serving  # Raises where the engine could not be kept alive.
    if working.cancelled():
        raise StartupError("stopped before all lines were answered; the same command goes on where this one stopped")
    await working


async def _until_ready(server: "Server") -> None:
    while True:
        try:
            server.context.model_when_ready()
        except EngineUnavailableError:
            await asyncio.sleep(_LOOK_S)
        else:
            return


async def _tell(server: "Server", num_lines: int) -> None:
    """Say now and then how far it is."""
    while True:
        await asyncio.sleep(_TELL_S)
        done = await server.context.store.batches.answered_lines(_BATCH, 0, 1 << 62)
        logger.info("%d of %d lines are answered", len(done), num_lines)
