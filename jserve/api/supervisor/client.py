"""The server's side of the engine: starts it, feeds it, hands its tokens out, and starts it again.

Owns the map from request id to inbox. The life of an engine: loading, ready, then gone; when it goes, every
open request fails at once and another is started, until too many have died in too short a time.
"""

import asyncio
import enum
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from jserve.api.settings import ServerSettings
from jserve.api.supervisor.admission import Admission
from jserve.api.supervisor.answer_clock import AnswerClock
from jserve.api.supervisor.inbox import Inbox
from jserve.api.supervisor.process import EngineHandle, LaunchedEngine, LaunchError, launch_engine
from jserve.config import EngineConfig
from jserve.errors import EngineFailedError, EngineUnavailableError, StartupError
from jserve.protocol import (
    Abort,
    EngineCompiled,
    EngineFatal,
    EngineProgress,
    EngineReady,
    EngineStats,
    FromEngine,
    ProgramCounts,
    Request,
    Shutdown,
    StepFrame,
    ToEngine,
)

logger = logging.getLogger(__name__)

_LAST_FRAMES_S = 0.2
"""How long the frames of an engine that has exited may still take to be read."""
_RELAUNCH_S = 1.0
"""Between attempts to start an engine while the system lacks the means."""
_EXIT_GRACE_S = 2.0
"""How long an engine whose socket has ended may take to exit before it is killed."""


_LOADING_LEAVE_S = 1.0
"""How long one that still loads may take to leave."""


class EngineStatus(enum.Enum):
    """What the engine is doing. DOWN: no process, between a death and the next start, or for good."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"


class EngineClient:
    """Talks to the one engine of this server. All methods belong to the event loop's thread."""

    def __init__(self, config: EngineConfig, settings: ServerSettings, launched: LaunchedEngine | None = None) -> None:
        """`launched` is an engine already under way, which `run` takes over instead of starting the first."""
        self._config = config
        self._settings = settings
        self._launched = launched
        self._process: EngineHandle | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._fatal: EngineFatal | None = None
        self._deaths: deque[float] = deque()
        self._stopping = False
        self.state = EngineStatus.LOADING
        self.progress: EngineProgress | None = None
        self.ready: EngineReady | None = None
        """The message of the newest engine that was ready; kept while the next one starts."""
        self.programs: ProgramCounts | None = None
        """The counts of the running engine; None before it has sent them."""
        self.stats = EngineStats()
        self.num_restarts = 0
        self.admission = Admission(settings.max_queued_requests, settings.max_queued_tokens)
        self._clock = AnswerClock()
        self.received_at = 0.0
        """`time.time()` of the newest frame, which is when its tokens arrived."""
        self.on_ready: Callable[[EngineReady], None] = lambda _: None
        self.on_compiled: Callable[[EngineCompiled], None] = lambda _: None
        self.on_step: Callable[[EngineStats], None] = lambda _: None

    @property
    def pid(self) -> int | None:
        """The engine's process id, None while there is no engine."""
        return self._process.pid if self._process else None

    @property
    def num_open(self) -> int:
        """Sequences that have been sent and are not over."""
        return len(self._inboxes)

    @property
    def seconds_silent(self) -> float:
        """How long the engine has owed an answer to what it was sent; 0 where it owes none."""
        return self._clock.seconds

    @property
    def is_stalled(self) -> bool:
        """Whether a ready engine has owed an answer for too long, even if its clients have left."""
        return self.state is EngineStatus.READY and self.seconds_silent > self._settings.stall_timeout_s

    @property
    def is_hung(self) -> bool:
        """Whether it has owed one for so long that it must be started again."""
        limit = self._settings.hang_timeout_s
        return self.state is EngineStatus.READY and 0 < limit < self.seconds_silent

    def check_ready(self) -> None:
        """Raise EngineUnavailableError, saying why, while no engine takes requests."""
        if self.state is not EngineStatus.READY or self._stopping:
            raise EngineUnavailableError(self.describe_unavailable())

    def submit(self, requests: Sequence[Request]) -> Inbox:
        """Send requests that share one client.

        Raises EngineUnavailableError while no engine is ready, OverloadedError while its queue is full.
        """
        self.check_ready()
        assert self._process is not None
        assert self.ready is not None
        self.admission.check(
            requests, num_open=self.num_open, max_num_seqs=self.ready.max_num_seqs, stats=self.stats
        )  # fmt: skip
        inbox = Inbox(tuple(request.request_id for request in requests))
        for request in requests:
            self._inboxes[request.request_id] = inbox
        self._send(requests)
        return inbox

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop those of these requests that are still open, and forget them. Returns at once."""
        open_ids = [request_id for request_id in request_ids if self._inboxes.pop(request_id, None)]
        for request_id in open_ids:
            self.admission.close(request_id)
        if open_ids:
            self._send([Abort(open_ids)])

    def _send(self, messages: Sequence[ToEngine]) -> None:
        if self._process is not None:
            self._clock.sent()
            self._process.send(messages)

    def describe_unavailable(self) -> str:
        """Why no request can be taken now, with how far a start is."""
        if self._stopping:
            return "the server is shutting down and takes no new requests"
        if self.state is EngineStatus.DOWN:
            return "the engine has stopped and is about to be restarted; try again in a few seconds"
        doing = "restarting after a failure" if self.num_restarts else "starting"
        return f"the engine is still {doing}: {self._describe_progress()}; try again in a few seconds"

    def _describe_progress(self) -> str:
        if self.progress is None:
            return "the process has been launched"
        phase = {"weights": "loading weights", "compile": "compiling"}.get(self.progress.phase)
        detail = f" ({self.progress.detail})" if self.progress.detail else ""
        return f"{phase or self.progress.phase} {self.progress.done} of {self.progress.total}{detail}"

    async def run(self) -> None:
        """Keep an engine alive until `stop`. Raises StartupError where that is not possible."""
        while not self._stopping:
            await self._live_once()
            if self._stopping:
                return
            self._check_restartable()
            self.num_restarts += 1

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Tell the engine to leave and wait for it; kill it when it takes longer than `timeout_s`.

        One that is still loading reads nothing, and has nothing to lose: it gets a second to leave in good order.
        """
        self._stopping = True
        process = self._process
        if process is None:
            return
        is_loading = self.state is EngineStatus.LOADING
        if is_loading:
            process.terminate()
        else:
            process.send([Shutdown()])
        try:
            await asyncio.wait_for(process.wait_for_exit(), _LOADING_LEAVE_S if is_loading else timeout_s)
        except TimeoutError:
            if not is_loading:
                logger.warning("the engine did not leave within %g s; killing it", timeout_s)
            process.kill()

    def kill(self) -> None:
        """End the engine without ceremony; for a hard stop."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()

    def kill_hung(self) -> None:
        """End an engine that does not answer; `run` starts another."""
        if self._process is not None:
            self._process.kill()

    async def _live_once(self) -> None:
        """Run one engine from its start to its end."""
        self._fatal = None
        self.progress = None
        self.programs = None
        launched = self._launched or await self._launch()
        self._launched = None
        self.state = EngineStatus.LOADING
        process = self._process = await launched.attach()
        try:
            await self._read_until_gone(process)
        except BaseException:
            process.kill()
            raise
        finally:
            was_ready = self.state is EngineStatus.READY
            self.state = EngineStatus.DOWN
            self._clock.stop()
            self._fail_open_requests()
        code = await process.reap(_EXIT_GRACE_S)
        self._process = None
        if not self._stopping:
            self._report_death(code, was_ready)
        elif code not in (0, -signal.SIGKILL):
            logger.warning("the engine process %s while it was stopped", _describe_exit(code))

    async def _launch(self) -> LaunchedEngine:
        """Start a process. Try again as long as only descriptors, processes or memory are lacking.

        Raises LaunchError where that would not help, or on the first start, which somebody is watching.
        """
        while True:
            try:
                return launch_engine(self._settings.engine_command, self._config)
            except LaunchError as error:
                if not error.is_passing or not self.num_restarts or self._stopping:
                    raise
                logger.error("%s; trying again in %g s", error, _RELAUNCH_S)
                await asyncio.sleep(_RELAUNCH_S)

    async def _read_until_gone(self, process: EngineHandle) -> None:
        frames = asyncio.create_task(self._read_frames(process))
        exited = asyncio.create_task(process.wait_for_exit())
        try:
            await asyncio.wait({frames, exited}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({frames}, timeout=_LAST_FRAMES_S)
            if frames.done():
                frames.result()
        finally:
            frames.cancel()
            exited.cancel()

    async def _read_frames(self, process: EngineHandle) -> None:
        with suppress(ConnectionError):
            while self._fatal is None:
                self._receive_all(await process.frames.read())

    def _receive_all(self, messages: Sequence[FromEngine]) -> None:
        """Sort all messages into their inboxes first, and wake each inbox once: one write for each client."""
        self.received_at = time.time()
        to_wake: list[Inbox] = []
        for message in messages:
            self._receive(message, to_wake)
        for inbox in to_wake:
            inbox.wake()

    def _receive(self, message: FromEngine, to_wake: list[Inbox]) -> None:
        if isinstance(message, StepFrame):
            self._receive_step(message, to_wake)
        elif isinstance(message, EngineProgress):
            self.progress = message
        elif isinstance(message, EngineCompiled):
            self.programs = message.counts
            self._clock.compiled()
            self.on_compiled(message)
        elif isinstance(message, EngineReady):
            self.ready = message
            self.state = EngineStatus.READY
            self.on_ready(message)
        else:
            self._fatal = message

    def _receive_step(self, frame: StepFrame, to_wake: list[Inbox]) -> None:
        self.stats = frame.stats
        self.on_step(frame.stats)
        inboxes, unstarted = self._inboxes, self.admission.unstarted
        for delta in frame.deltas:
            if unstarted:
                unstarted.pop(delta.request_id, None)
            inbox = inboxes.get(delta.request_id)
            if inbox is None:
                continue
            if inbox.put(delta):
                to_wake.append(inbox)
            if delta.finish_reason is not None:
                del inboxes[delta.request_id]
                self.admission.close(delta.request_id)
        stats = frame.stats
        has_work = inboxes or stats.num_running or stats.num_waiting or stats.num_deferred
        self._clock.heard(has_work=bool(has_work))

    def _fail_open_requests(self) -> None:
        inboxes, self._inboxes = self._inboxes, {}
        self.admission.clear()
        for inbox in set(inboxes.values()):
            inbox.fail(EngineFailedError("the engine process died while it worked on this request; send it again"))
        self.stats = EngineStats()

    def _report_death(self, code: int, was_ready: bool) -> None:
        reason = self._fatal.message if self._fatal is not None else f"the engine process {_describe_exit(code)}"
        # What ends the first start would end the next one too; it is told once.
        has_served = was_ready or self.num_restarts > 0
        retry = has_served and (self._fatal is None or self._fatal.retry)
        if not retry:
            raise StartupError(reason)
        logger.error("engine died: %s", reason)
        self._deaths.append(time.monotonic())

    def _check_restartable(self) -> None:
        window = self._settings.restart_window_s
        while self._deaths and self._deaths[0] < time.monotonic() - window:
            self._deaths.popleft()
        if len(self._deaths) > self._settings.max_engine_restarts:
            raise StartupError(
                f"the engine died {len(self._deaths)} times within {window:g} seconds; giving up. "
                "Its own messages above say why"
            )
        logger.warning("restarting the engine (death %d within %g s)", len(self._deaths), window)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with code {code} before it said why; its messages above may tell"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = " (often the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"was killed by signal {-code}"
