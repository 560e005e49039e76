"""Requests whose grammar is being compiled. They stand in no queue yet."""

import logging
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from llguidance import LLMatcher

from jserve.constrain.compiler import GrammarCompiler
from jserve.constrain.constraint import ConstraintError
from jserve.protocol import Request

logger = logging.getLogger(__name__)

Outcome = tuple[Request, LLMatcher | str]
"""A request with a matcher of its own, or with the reason why there is none."""


class DeferredRequests:
    """In order of arrival; each leaves as soon as its own grammar is there. Driven from one thread."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._requests: dict[str, tuple[Request, Future[LLMatcher]]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(self, request: Request) -> None:
        """Compile a request's grammar."""
        sampling = request.sampling
        matcher = self._compiler.compile(sampling.grammar, sampling.grammar_bytes)
        self._requests[request.request_id] = request, matcher

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget these; unknown ids are ignored. A compile that has begun goes on and is kept for the next."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def take_ready(self, timeout: float) -> list[Outcome]:
        """Requests that need not wait any longer. Waits up to `timeout` seconds for the first one."""
        if not self._requests:
            return []
        wait([future for _, future in self._requests.values()], timeout, FIRST_COMPLETED)
        done = [entry for entry in self._requests.values() if entry[1].done()]
        return [self._take(request, future) for request, future in done]

    def _take(self, request: Request, future: "Future[LLMatcher]") -> Outcome:
        del self._requests[request.request_id]
        try:
            return request, future.result().deep_copy()
        except ConstraintError as error:
            return request, str(error)
        except Exception as error:
            logger.exception("a grammar of request %s could not be compiled", request.request_id)
            return request, f"the grammar does not compile: {type(error).__name__}"
