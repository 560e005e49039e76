"""The life of the server process: listen at once, load, serve, drain, leave.

Owns signals. The first SIGINT or SIGTERM drains: readiness drops, new requests are refused, open ones may
finish until `--shutdown-timeout`. The second ends everything at once.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from starlette.types import ASGIApp

from jserve.api.access.account import Accounts
from jserve.api.access.isolation import CacheIsolation
from jserve.api.access.keys import KeyRing
from jserve.api.context import ServerContext
from jserve.api.generation.generation import Generator
from jserve.api.http.early_app import EarlyApp
from jserve.api.http.uvicorn_server import CLOSE_S, UvicornServer
from jserve.api.model.served_model import ServedModel
from jserve.api.notify_socket import NotifySocket
from jserve.api.settings import ServerSettings
from jserve.api.store.store import Store
from jserve.api.supervisor.client import EngineClient
from jserve.api.supervisor.process import LaunchedEngine
from jserve.api.telemetry.audit import AuditLog
from jserve.api.telemetry.metrics import Metrics
from jserve.api.telemetry.tracing import Tracer
from jserve.api.telemetry.watchdog import watch_decode
from jserve.api.telemetry.workload import ServedWorkload
from jserve.config import EngineConfig
from jserve.errors import ConfigError, EngineUnavailableError

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_IDLE_POLL_S = 0.5


class Server:
    """One server on one listening socket."""

    def __init__(
        self,
        config: EngineConfig,
        settings: ServerSettings,
        listener: socket.socket,
        launched: LaunchedEngine | None = None,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_loaded` is called when all that stays until the end has been loaded."""
        client = EngineClient(config, settings, launched)
        metrics = Metrics(client, settings.model_names[0])
        keys = KeyRing(settings.api_keys, settings.api_key_file, settings.limits.names if settings.limits else None)
        accounts = Accounts(settings.limits)
        metrics.rate_limited = accounts.rejections
        isolation = CacheIsolation(settings.cache_isolation)
        generator = Generator(client, metrics, isolation, log_requests=settings.enable_log_requests)
        store = Store(settings.storage_dir, settings.storage_retention_hours * 3600)
        endpoint = settings.otlp_traces_endpoint
        tracer = Tracer(endpoint, settings.model_names[0]) if endpoint else None
        audit_log = _audit_log(settings)
        workload = _workload(settings)
        self.context = ServerContext(
            settings, client, generator, metrics, keys, accounts, store, audit_log, workload, tracer
        )
        self._batches: asyncio.Task[None] | None = None
        self._config = config
        self._on_loaded = on_loaded
        self._listener = listener
        self._began = time.monotonic()
        self._stop_requested = asyncio.Event()
        self._app = EarlyApp(self._build_app, is_alive_enough=settings.health_when == "alive")
        self._http = UvicornServer(self._app, settings)
        self._notify = NotifySocket()

    @property
    def url(self) -> str:
        """Where clients connect."""
        if self.context.settings.uds is not None:
            return f"unix:{self.context.settings.uds}"
        host, port = self._listener.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        scheme = "https" if self.context.settings.ssl_certfile else "http"
        return f"{scheme}://{shown}:{port}"

    async def run(self) -> None:
        """Serve until stopped. Raises StartupError where the engine cannot be kept alive."""
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        engine = asyncio.create_task(self.context.client.run())
        loading = asyncio.create_task(self._load())
        stop = asyncio.create_task(self._stop_requested.wait())
        watchdog = asyncio.create_task(watch_decode(self.context.client))
        notifier = asyncio.create_task(self._notify.follow(self.context))
        idle = asyncio.create_task(self._stop_when_idle())
        self.context.client.on_ready = lambda _: self._announce()
        try:
            waiting = {http, engine, loading, stop}
            while waiting and not stop.done() and not http.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            await self._drain()
        finally:
            for task in (loading, stop, watchdog, idle):
                task.cancel()
            await self._close(http, engine)
            notifier.cancel()
            self._notify.close()
            await asyncio.to_thread(self.context.store.close)
            if self.context.audit_log is not None:
                self.context.audit_log.close()
            if self.context.workload is not None:
                self.context.workload.close()
            if self.context.tracer is not None:
                await asyncio.to_thread(self.context.tracer.close)

    def stop(self) -> None:
        """Begin to drain."""
        self.context.generator.is_draining = True
        self._stop_requested.set()

    def reload(self) -> None:
        """Read certificate, limits and keys again. What cannot be used is told, and stays as it was."""
        try:
            self._http.reload_certificate()
        except OSError as error:  # ssl.SSLError is one
            logger.error("the certificate stays as it was: %s", error)
        context = self.context
        if context.settings.limits_file is not None:
            from jserve.api.access.limits_file import read_limits

            try:
                limits = read_limits(context.settings.limits_file)
            except ConfigError as error:
                logger.error("the limits stay as they were: %s", error)
            else:
                context.accounts.change_limits(limits)
                context.keys.rename(limits.names)
        context.keys.reload()
        logger.info("read again: certificate, limits and keys, as far as there are any")

    def stop_hard(self) -> None:
        """End the engine and leave without waiting for anybody."""
        self.context.client.kill()
        os._exit(1)

    def _build_app(self) -> ASGIApp:
        from jserve.api.app import build_app  # with FastAPI, half a second

        return build_app(self.context)

    async def _load(self) -> None:
        """Load what does not need the engine: the routes, then the model's text side."""
        await self._app.load()
        load: Callable[[], ServedModel] = lambda: ServedModel.load(self.context.settings, self._config)  # noqa: E731
        self.context.loaded_model = await asyncio.to_thread(load)
        self.context.share_facts()  # From here on requests are admitted, where the engine was ready first.
        await self._go_on()
        self._on_loaded()
        self._announce()
        await self.context.loaded_model.renderer.start()  # A request that comes first waits for it, and no other does.

    async def _go_on(self) -> None:
        """Go on with what an earlier process left unfinished."""
        from jserve.api.openai.responses_api.background import fail_abandoned

        await fail_abandoned(self.context)
        if (files := self.context.store.files) is not None:
            from jserve.api.openai.batch.runner import BatchRunner

            self._batches = asyncio.create_task(BatchRunner(self.context, files).run())

    def _announce(self) -> None:
        """Say once, per engine, that requests are welcome."""
        context = self.context
        context.share_facts()
        with contextlib.suppress(EngineUnavailableError):
            name = context.model_when_ready().name
            ready = context.client.ready
            assert ready is not None
            counts = context.client.programs
            behind = f"; {counts.pending} of {counts.total} programs follow behind" if counts else ""
            logger.info(
                "ready: %s serves %s on %s (context %d tokens, %d sequences) after %.1f s%s",
                self.url, name, ready.device, ready.model.max_model_len, ready.max_num_seqs,
                time.monotonic() - self._began, behind,
            )  # fmt: skip

    async def _stop_when_idle(self) -> None:
        """Stop when nobody has asked anything for long enough, counted from the moment when somebody could."""
        limit = self.context.settings.exit_when_idle_s
        if limit is None:
            return
        generator, client = self.context.generator, self.context.client
        while client.ready is None:
            generator.last_active = time.monotonic()
            await asyncio.sleep(_IDLE_POLL_S)
        while generator.num_open or time.monotonic() - generator.last_active < limit:
            await asyncio.sleep(_IDLE_POLL_S)
        logger.info("stopping: no request for %g s (--exit-when-idle)", limit)
        self.stop()

    async def _drain(self) -> None:
        generator, timeout = self.context.generator, self.context.settings.shutdown_timeout_s
        self._notify.tell("STOPPING=1")
        if self._batches is not None:  # Nobody waits for them; they go on after a restart.
            self._batches.cancel()
            await asyncio.gather(self._batches, return_exceptions=True)
        if generator.num_open:
            logger.info("stopping: %d requests have %g s to finish", generator.num_open, timeout)
        deadline = time.monotonic() + timeout
        while generator.num_open and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if generator.num_open:
            logger.warning("stopping: %d requests did not finish in time and are cut off", generator.num_open)
            generator.cancel_all(EngineUnavailableError("the server shut down before the answer was complete"))
        await asyncio.gather(*self.context.background.values(), return_exceptions=True)

    async def _close(self, http: "asyncio.Task[None]", engine: "asyncio.Task[None]") -> None:
        self.context.generator.is_draining = True
        self._http.stop()
        await asyncio.gather(http, return_exceptions=True)
        await self.context.client.stop()
        self.context.grammars.close()
        if self.context.loaded_model is not None:
            self.context.loaded_model.renderer.close()
        await asyncio.wait({engine}, timeout=CLOSE_S)
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)
        logger.info("stopped")


def _audit_log(settings: ServerSettings) -> AuditLog | None:
    if settings.audit_log is None:
        return None
    return AuditLog(settings.audit_log, settings.audit_log_max_bytes, settings.audit_log_files, settings.model_names[0])


def _workload(settings: ServerSettings) -> ServedWorkload | None:
    return ServedWorkload(settings.record_workload, settings.model_names[0]) if settings.record_workload else None


def _settle() -> None:
    """Exclude all loaded objects from garbage collection: a pass over them stops all requests for 0.1 s."""
    gc.collect()
    gc.freeze()


async def serve(
    config: EngineConfig,
    settings: ServerSettings,
    listener: socket.socket,
    launched: LaunchedEngine | None = None,
) -> None:
    """Run a server that obeys signals, until it is told to stop. Raises StartupError."""
    server = Server(config, settings, listener, launched, _settle)

    def on_signal() -> None:
        if server.context.generator.is_draining:
            server.stop_hard()
        server.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    await server.run()
