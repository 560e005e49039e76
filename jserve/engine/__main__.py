"""Entry of the engine process: `python -m jserve.engine --fd N`; jserve starts it."""

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from jserve.config import EngineConfig
from jserve.engine.process import serve
from jserve.errors import StartupError
from jserve.ipc import EngineSocket
from jserve.log import set_up_logging
from jserve.progress import StartupBars
from jserve.protocol import (
    EngineFatal,
    FromEngine,
)
from jserve.runtime.compile_ahead import compile_ahead
from jserve.runtime.platform import choose_platform
from jserve.runtime.program_folder import forgive_loading

logger = logging.getLogger("jserve.engine")


def main() -> int:
    """Entry of the engine process: `python -m jserve.engine --fd N`, an `EngineConfig` as JSON on stdin."""
    parser = argparse.ArgumentParser(prog="jserve.engine", description="The engine process; jserve starts it.")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--fd", type=int, help="inherited socket to the API process")
    work.add_argument(
        "--compile-into", type=Path, metavar="DIR", help="compile all programs into this folder, and leave"
    )
    options = parser.parse_args()
    if options.compile_into is not None:
        return _compile_ahead(options.compile_into)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _leave(0))
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    set_up_logging(config.log_level, config.log_format)
    connection = EngineSocket(socket.socket(fileno=options.fd))
    try:
        serve(config, connection)
    except StartupError as error:
        return _last_words(connection, EngineFatal(str(error), retry=False))
    except (BrokenPipeError, ConnectionError):
        return 0
    except Exception as error:
        logger.exception("the engine failed")
        return _last_words(connection, EngineFatal(f"{type(error).__name__}: {error}", retry=True))
    return 0


def _compile_ahead(folder: Path) -> int:
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    set_up_logging(config.log_level, config.log_format)
    choose_platform(config.gpu_memory_utilization, folder)
    bars = StartupBars()
    try:
        compile_ahead(config, folder, bars.show)
    except StartupError as error:
        print(f"jserve: {error}", file=sys.stderr)
        return 1
    finally:
        bars.close()
    return 0


def _last_words(connection: EngineSocket, message: FromEngine) -> int:
    try:
        connection.send(message)
    except OSError:
        logger.error("%s", message)
    return 1


def _leave(code: int) -> None:
    """End this process at once. The thread that compiles behind may be deep inside XLA, which does not survive the
    interpreter's end.
    """
    if code == 0:
        forgive_loading()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
