"""Grammars are compiled here before a request is admitted, in processes that a bad one cannot take the server with.

A grammar that passes is compiled once more by the engine, which therefore never meets one that it cannot bear.
"""

import asyncio
import hashlib
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from jserve.api.call import current_call
from jserve.api.supervisor.fair_turns import FairTurns
from jserve.api.supervisor.worker_process import WorkerDiedError, WorkerLostError, WorkerProcess
from jserve.errors import FieldPath, JserveError, OverloadedError, RequestError
from jserve.text.grammars.grammar_worker import GrammarJob, GrammarSetup, Reasoning, Verdict
from jserve.text.grammars.structured import StructuredOutput

logger = logging.getLogger(__name__)

_MODULE = "jserve.text.grammars.grammar_worker"
_PROCESSES = 2
"""The second is started when the first is busy, so that one slow grammar holds up nobody. Keys take turns."""
_KEPT = 512
"""Verdicts that are remembered."""
_KEPT_BYTES = 1 << 16
"""Longest grammar that is remembered."""

_RETRY_AFTER_S = 5

_decode = msgspec.msgpack.Decoder(Verdict).decode


class GrammarChecker:
    """All methods belong to the event loop's thread. Nothing is started before the first grammar comes."""

    def __init__(self, setup: Callable[[], GrammarSetup], timeout_s: float, max_bytes: int) -> None:
        """`setup` is asked for once, when the model is loaded. A grammar may take `timeout_s` and `max_bytes`."""
        self._setup = setup
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._processes: list[WorkerProcess] = []
        self._turns = FairTurns(_PROCESSES)
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._prepared: asyncio.Task[None] | None = None

    async def compile(self, spec: StructuredOutput, reasoning: Reasoning | None = None) -> Verdict:
        """The grammar of `spec`, perhaps after reasoning, which is known to compile. Raises RequestError.

        Raises OverloadedError where something from outside kills the process that compiles, twice.
        """
        verdict = await self._verdict(GrammarJob(spec, reasoning), spec.field)
        if verdict.error:
            raise _refused(spec.field, verdict.error)
        return verdict

    async def check(self, grammar: str, *, param: str) -> Verdict:
        """The verdict on `grammar`, in llguidance's words. `param` is the field it came from. Raises as `compile`."""
        verdict = await self._verdict(GrammarJob(grammar), param)
        if verdict.error:
            raise _refused(param, verdict.error)
        return verdict

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.stop()

    async def _verdict(self, job: GrammarJob, field: str) -> Verdict:
        try:
            request = pickle.dumps(job)
        except RecursionError:
            raise _refused(field, "it is nested too deeply") from None
        if len(request) > self._max_bytes:
            raise _refused(
                field,
                f"{len(request)} bytes are more than the {self._max_bytes} that a grammar may have "
                "(--max-grammar-bytes)",
            )
        digest = hashlib.sha256(request).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None:
            verdict = await self._ask(request)
            if verdict.is_final and len(verdict.grammar) <= _KEPT_BYTES:
                self._verdicts[digest] = verdict
                if len(self._verdicts) > _KEPT:
                    self._verdicts.popitem(last=False)
        else:
            self._verdicts.move_to_end(digest)
        return verdict

    async def _ask(self, request: bytes) -> Verdict:
        await self._prepare()
        try:
            async with self._turns.turn(current_call().key.digest):
                process = min(self._processes, key=lambda process: process.num_waiting)
                return _decode(await process.call(request))
        except WorkerLostError as why:
            if isinstance(why, WorkerDiedError) and why.is_from_outside:
                logger.error("compiling a grammar %s, which was killed from outside, twice", why)
                raise OverloadedError(
                    "the process that compiles grammars was killed twice during this request; try again in a moment",
                    retry_after_s=_RETRY_AFTER_S,
                ) from None
            logger.warning("compiling a grammar %s; it is refused", why)
            return Verdict(error=f"compiling it {why}; ask for something simpler", is_final=False)

    async def _prepare(self) -> None:
        if self._prepared is None:
            self._prepared = asyncio.create_task(self._make_processes())
        try:
            await asyncio.shield(self._prepared)
        except JserveError:
            self._prepared = None
            raise

    async def _make_processes(self) -> None:
        setup = await asyncio.to_thread(lambda: pickle.dumps(self._setup()))  # Megabytes of vocabulary.
        self._processes = [WorkerProcess(_MODULE, setup, self._timeout_s) for _ in range(_PROCESSES)]


def _refused(field: str, reason: str) -> RequestError:
    return RequestError(FieldPath(field), f": {reason}", param=field)
