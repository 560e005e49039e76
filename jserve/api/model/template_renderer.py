"""Renders conversations in processes that a bad template cannot take the server down with.

Two of them, each started when it is first needed: one for the model's template and everyday conversations, one
for templates that come with requests and for very large conversations, so that those hold up nobody else.
"""

import logging
import pickle
from collections.abc import Mapping

import msgspec

from jserve.api.supervisor.worker_process import WorkerDiedError, WorkerLostError, WorkerProcess
from jserve.errors import EngineUnavailableError, RequestError
from jserve.text.templates.render_worker import Rendered, RenderJob, RenderSetup

logger = logging.getLogger(__name__)

_CPU_S = {False: 5.0, True: 2.0}
"""CPU time of one job, in the everyday process and in the other. A conversation of a million tokens takes one."""
_WALL_S = 20.0
"""After this the process is killed, whatever it is doing: a step of C code cannot be interrupted."""
_LARGE_BYTES = 1 << 19
_MODULE = "jserve.text.templates.render_worker"

_decode = msgspec.msgpack.Decoder(Rendered).decode


class TemplateRenderer:
    """All methods belong to the event loop's thread."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._processes = {
            is_apart: WorkerProcess(
                _MODULE, pickle.dumps(RenderSetup(dict(templates), dict(special_tokens), cpu_s)), _WALL_S
            )
            for is_apart, cpu_s in _CPU_S.items()
        }

    async def start(self) -> None:
        """Start the everyday process, so that the first request need not wait for it."""
        await self._processes[False].start()

    async def render(self, job: RenderJob) -> Rendered:
        """The prompt. Raises RequestError where the template refuses, fails, or goes beyond its limits.

        Raises EngineUnavailableError where the process was lost twice, which need not be this request's fault.
        """
        request = pickle.dumps(job)
        is_apart = job.template is not None or len(request) > _LARGE_BYTES
        try:
            rendered = _decode(await self._processes[is_apart].call(request))
        except WorkerDiedError as why:
            logger.error("rendering a chat template %s, twice", why)
            raise EngineUnavailableError(
                "the process that renders chat templates has ended twice during this request; try again in a moment"
            ) from None
        except WorkerLostError as why:
            logger.warning("a chat template %s and was stopped", why)
            raise RequestError(f"the chat template {why} on these messages", param="messages") from None
        if rendered.error:
            raise RequestError(rendered.error, param=rendered.param)
        return rendered

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.stop()
