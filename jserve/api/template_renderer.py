"""Renders conversations in processes that a bad template cannot take the server down with.

Two of them, each started when it is first needed: one for the model's template and everyday conversations, one
for templates that come with requests and for very large conversations, so that those hold up nobody else.
"""

import asyncio
import logging
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from jserve.api.process import die_with_parent
from jserve.errors import RequestError
from jserve.text.render_worker import LENGTH, Rendered, RenderJob, RenderSetup

logger = logging.getLogger(__name__)

_CPU_S = {False: 5.0, True: 2.0}
"""CPU time of one job, in the everyday process and in the other. A conversation of a million tokens takes one."""
_WALL_S = 20.0
"""After this the process is killed, whatever it is doing: a step of C code cannot be interrupted."""
_LARGE_BYTES = 1 << 19
_MODULE = "jserve.text.render_worker"

_decode = msgspec.msgpack.Decoder(Rendered).decode


class TemplateRenderer:
    """All methods belong to the event loop's thread."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._processes = {
            is_apart: _RenderProcess(RenderSetup(dict(templates), dict(special_tokens), cpu_s))
            for is_apart, cpu_s in _CPU_S.items()
        }

    async def start(self) -> None:
        """Start the everyday process, so that the first request need not wait for it."""
        await self._processes[False].start()

    async def render(self, job: RenderJob) -> Rendered:
        """The prompt. Raises RequestError where the template refuses, fails, or goes beyond its limits."""
        request = pickle.dumps(job)
        is_apart = job.template is not None or len(request) > _LARGE_BYTES
        rendered = await self._processes[is_apart].call(request)
        if rendered.error:
            raise RequestError(rendered.error, param=rendered.param)
        return rendered

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.stop()


class _RenderProcess:
    """One process, which serves one job at a time and is replaced when it is lost."""

    def __init__(self, setup: RenderSetup) -> None:
        self._setup = pickle.dumps(setup)
        self._turn = asyncio.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def call(self, request: bytes) -> Rendered:
        """The answer of the process."""
        async with self._turn:
            if self._popen is None or self._popen.poll() is not None:
                await self._launch()
            is_answered = False
            try:
                async with asyncio.timeout(_WALL_S):
                    answer = await self._exchange(request)
                is_answered = True
                return answer
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                why = f"took more than {_WALL_S:g} s" if isinstance(error, TimeoutError) else "ended its process"
                logger.warning("a chat template %s and was stopped", why)
                raise RequestError(f"the chat template {why} on these messages", param="messages") from None
            finally:
                if not is_answered:  # Also where the caller was cancelled: its answer must not become the next one's.
                    self.stop()

    async def start(self) -> None:
        """Start the process where it does not run."""
        async with self._turn:
            if self._popen is None:
                await self._launch()

    def stop(self) -> None:
        """Kill the process, if it runs."""
        if self._popen is None:
            return
        self._writer.close()
        self._popen.kill()
        self._popen.wait()  # A process that is killed is gone within a millisecond.
        self._popen = None

    async def _launch(self) -> None:
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        ours.setblocking(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._send(self._setup)

    async def _exchange(self, request: bytes) -> Rendered:
        self._send(request)
        await self._writer.drain()
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return _decode(await self._reader.readexactly(length))

    def _send(self, body: bytes) -> None:
        self._writer.write(LENGTH.pack(len(body)) + body)
