"""A process that renders chat templates, and can be lost: `python -m jserve.text.templates.render_worker FD`.

A template is a program that came with a model, or with a request. Jinja's sandbox keeps it from reaching out,
but not from running for ever or building gigabytes; only a process of its own, with a limit on its CPU time
and on its memory, does. It serves one job after the other, and leaves when the socket ends.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from jserve.errors import RequestError
from jserve.text.templates.chat_template import ChatTemplate
from jserve.text.templates.job_frames import serve_jobs

MEMORY_LIMIT = 1 << 30
"""Bytes of address space of the process, of which the interpreter needs about a twentieth."""
_MAX_KEPT = 8
"""Templates of requests that are kept compiled."""
_MAX_ERROR_CHARS = 2000
"""Longest message of a template that is passed on."""


@dataclass(frozen=True, slots=True)
class RenderSetup:
    """The first frame: the model's templates and special tokens, and the seconds of CPU that a job may use."""

    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    cpu_s: float


@dataclass(frozen=True, slots=True)
class RenderJob:
    """One conversation. `template` replaces the model's. Prompts above `max_chars` are not sent back."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Mapping[str, Any]
    template: str | None
    max_chars: int


class Rendered(msgspec.Struct, frozen=True):
    """A prompt, or why there is none. `text` is empty where `num_chars` is above the job's `max_chars`."""

    text: str = ""
    num_chars: int = 0
    error: str = ""
    param: str | None = None


class _OutOfTimeError(BaseException):
    """Not an Exception, which a filter of Jinja's might take for a value that is missing."""


class RenderWorker:
    """The templates that this process has compiled."""

    def __init__(self, setup: RenderSetup) -> None:
        self._setup = setup
        self._own = ChatTemplate(setup.templates, setup.special_tokens)
        self._given: dict[str, ChatTemplate] = {}

    def render(self, job: RenderJob) -> Rendered:
        """The answer to a job, within the limits."""
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, self._setup.cpu_s)
                return self._render(job)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except RequestError as error:
            if isinstance(error.__cause__, MemoryError):
                return _too_big()
            return Rendered(error=_encodable(str(error)[:_MAX_ERROR_CHARS]), param=error.param)
        except _OutOfTimeError:
            message = f"the chat template took more than {self._setup.cpu_s:g} s on these messages and was stopped"
            return Rendered(error=message, param="messages")
        except MemoryError:
            return _too_big()

    def _render(self, job: RenderJob) -> Rendered:
        text = self._chat_template(job.template).render(
            job.messages,
            tools=job.tools,
            documents=job.documents,
            add_generation_prompt=job.add_generation_prompt,
            continue_final_message=job.continue_final_message,
            chat_template_kwargs=job.variables,
        )
        if _encodable(text) != text:
            return Rendered(error="the chat template writes text that is not valid Unicode", param="messages")
        return Rendered(text if len(text) <= job.max_chars else "", len(text))

    def _chat_template(self, source: str | None) -> ChatTemplate:
        if source is None:
            return self._own
        if source not in self._given:
            while len(self._given) >= _MAX_KEPT:
                del self._given[next(iter(self._given))]
            self._given[source] = ChatTemplate({"default": source}, self._setup.special_tokens)
        return self._given[source]


def _too_big() -> Rendered:
    return Rendered(
        error=f"the chat template needs more than {MEMORY_LIMIT >> 20} MiB of memory on these messages",
        param="messages",
    )


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _out_of_time(number: int, frame: Any) -> None:
    raise _OutOfTimeError


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _out_of_time)
    serve_jobs(connection, _start)


def _start(setup: RenderSetup) -> Callable[[RenderJob], bytes]:
    worker = RenderWorker(setup)
    return lambda job: msgspec.msgpack.encode(worker.render(job))


if __name__ == "__main__":
    main()
