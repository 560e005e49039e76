"""The `jserve` command: reads the options, takes the port, starts the engine, and serves.

The order is deliberate: a wrong flag or a used port is told within a fraction of a second, and the engine is
on its way before the HTTP libraries are imported. Never imports jax.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jserve.api.settings import DEFAULT_ENGINE_COMMAND
from jserve.config import EngineConfig
from jserve.errors import JserveError
from jserve.log import set_up_logging, writes_json


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Leaves with 0 after a graceful stop, 1 where it cannot go on, 2 for a bad flag."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except JserveError as error:
        if writes_json():
            logging.getLogger(__name__).critical("%s", error)
        else:
            print(f"jserve: {error}", file=sys.stderr)
        sys.exit(1)


def run(argv: Sequence[str]) -> None:
    """Serve until stopped. Raises StartupError where that is not possible."""
    if argv[:1] == ["inspect"]:
        from jserve.api.subcommands import parse_inspect

        inspect_model(*parse_inspect(argv[1:]))
        return
    if argv[:1] == ["convert"]:
        from jserve.api.subcommands import parse_convert

        convert_into(*parse_convert(argv[1:]))
        return
    if argv[:1] == ["quantize"]:
        from jserve.api.subcommands import parse_quantize
        from jserve.commands.quantize.command import quantize_into

        quantize_into(*parse_quantize(argv[1:]))
        return
    if argv[:1] == ["perplexity"]:
        from jserve.api.subcommands import parse_perplexity

        tell_perplexity(*parse_perplexity(argv[1:]))
        return
    from jserve.api.subcommands import parse_compile
    from jserve.commands.options import parse

    if argv[:1] == ["compile"]:
        compile_into(*parse_compile(argv[1:]))
        return
    config, settings = parse(argv)
    set_up_logging(settings.log_level, settings.log_format)
    from jserve.api.http.listener import listen

    listener = listen(settings.host, settings.port)
    from jserve.api.supervisor.process import launch_engine

    launched = launch_engine(settings.engine_command, config)
    try:
        import uvloop

        from jserve.api.server import serve

        uvloop.run(serve(config, settings, listener, launched))
    finally:
        listener.close()
        if launched.popen.poll() is None:
            launched.popen.kill()


def compile_into(config: EngineConfig, folder: Path) -> None:
    """`jserve compile`: have the engine's process compile every program into a folder."""
    command = [*DEFAULT_ENGINE_COMMAND, "--bake", str(folder)]
    code = subprocess.run(command, input=msgspec.json.encode(config), check=False).returncode
    if code:
        sys.exit(1)


def convert_into(config: EngineConfig, folder: Path) -> None:
    """`jserve convert`: write the model as it is served, for quick starts."""
    from jserve.commands.convert import convert

    convert(config, folder)


def tell_perplexity(config: EngineConfig, file: Path, length: int, as_json: bool) -> None:
    """`jserve perplexity`: print how well a model predicts a text."""
    from jserve.commands.corpus import read_text

    set_up_logging(config.log_level, config.log_format)
    text = read_text(file, "FILE")
    from jserve.commands.perplexity import measure

    found = measure(config, text, length)
    if as_json:
        print(found.as_json())
    else:
        print(f"perplexity {found.value:.4f}, {found.nats_per_token:.5f} nats a token over {found.tokens:,} tokens")


def inspect_model(config: EngineConfig, device: str, as_json: bool) -> None:
    """`jserve inspect`: print what a model is and what it would take, from its headers. Exits with 1 where it would
    not run.
    """
    from jserve.commands.inspect import inspect, print_table, to_json

    found = inspect(config, device)
    if as_json:
        print(to_json(found))
    else:
        print_table(found)
    if not found.runs:
        sys.exit(1)
