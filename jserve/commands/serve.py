"""`jserve --model PATH`: reads the options, takes the port, starts the engine, and serves.

The order is deliberate: a wrong flag or a used port is told within a fraction of a second, and the engine is
on its way before the HTTP libraries are imported. Never imports jax.
"""

from collections.abc import Sequence

from jserve.commands.hub_model import with_local_files
from jserve.commands.options import parse
from jserve.log import set_up_logging


def run(argv: Sequence[str]) -> None:
    """Serve until stopped. Raises StartupError where that is not possible."""
    config, settings = parse(argv)
    set_up_logging(settings.log_level, settings.log_format)
    from jserve.api.http.descriptors import raise_descriptor_limit
    from jserve.api.http.listener import listen_on

    raise_descriptor_limit()
    listener = listen_on(settings)
    config, settings = with_local_files(config, settings)
    from jserve.api.supervisor.process import launch_engine

    launched = launch_engine(settings.engine_command, config)
    try:
        import uvloop

        from jserve.api.server import serve

        uvloop.run(serve(config, settings, listener, launched))
    finally:
        listener.close()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)
        if launched.popen.poll() is None:
            launched.popen.kill()
