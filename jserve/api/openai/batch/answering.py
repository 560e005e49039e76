"""Answers the lines of one batch, in the order in which they come, as many at once as the pace allows.

A line is answered by the handler of its URL. Where the server cannot take it now, it waits; where the engine failed
under it, it is tried once more, with no other line beside it, so that a line which kills engines takes no other along.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jserve.api.access.keys import ApiKey
from jserve.api.call import Call
from jserve.api.context import ServerContext
from jserve.api.http.in_process import Handler, HandlerAnswer, answer_of
from jserve.api.json_writer import encode
from jserve.api.openai.batch.lines import Line, NumberedLine, parsed, read_lines
from jserve.api.openai.batch.pace import Pace
from jserve.api.openai.chat import chat_completions
from jserve.api.openai.completions import completions
from jserve.api.openai.embeddings import embeddings
from jserve.api.openai.responses_api.route import responses
from jserve.api.openai.scoring import SCORING_ROUTES

HANDLERS: dict[str, Handler] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/responses": responses,
    **{path: handler for method, path, handler in SCORING_ROUTES if method == "POST"},
}
"""What a line may ask for."""
URLS = frozenset(HANDLERS)
_NO_KEY_S = 5.0
"""How long to wait before a key is looked for again that has been revoked."""


@dataclass(frozen=True, slots=True)
class BatchInput:
    """Whose lines are answered, and where they stand. `endpoint` None: each line may have its own."""

    batch_id: str
    path: Path
    endpoint: str | None
    key: Callable[[], ApiKey | None]


class LineAnswerer:
    """Answers lines and keeps their results."""

    def __init__(self, server: ServerContext, pace: Pace) -> None:
        self._server = server
        self._pace = pace
        self._table = server.store.batches

    async def answer_all(self, batch: BatchInput) -> None:
        """Answer the lines that have no result. Where it is cancelled, those under way are given up.

        Raises FileNotFoundError where the input is gone, StorageError.
        """
        try:
            async with asyncio.TaskGroup() as lines:
                async for line in self._unanswered(batch):
                    await self._pace.take_turn()
                    lines.create_task(self._answer(batch, line))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def expire_rest(self, batch: BatchInput) -> None:
        """Give all lines without a result the error that their time is over."""
        async for line in self._unanswered(batch):
            error = {"code": "batch_expired", "message": "the batch's time was over before this line was answered"}
            await self._keep(batch, line.number, parsed(line, batch.endpoint, URLS), None, error)

    async def _unanswered(self, batch: BatchInput) -> AsyncIterator[NumberedLine]:
        async for lines in read_lines(batch.path, self._server.settings.max_request_bytes):
            if not lines:
                continue
            done = await self._table.answered_lines(batch.batch_id, lines[0].number, lines[-1].number + 1)
            for line in lines:
                if line.number not in done:
                    yield line

    async def _answer(self, batch: BatchInput, line: NumberedLine) -> None:
        try:
            request = parsed(line, batch.endpoint, URLS)
            answer = await self._attempt(batch, request)
        finally:
            self._pace.end_turn()
        if answer.status == 500:
            async with self._pace.alone():
                answer = await self._attempt(batch, request)
        await self._keep(batch, line.number, request, answer, None)

    async def _attempt(self, batch: BatchInput, request: Line) -> HandlerAnswer:
        """The answer of a handler, once the server takes the request."""
        body = encode(request.body)
        while True:
            key = batch.key()
            if key is None:
                await asyncio.sleep(_NO_KEY_S)
                continue
            account = self._server.accounts.of(key)
            call = Call(
                request_id=secrets.token_hex(16),
                method="POST",
                path=request.url,
                client="a batch",
                key=key,
                account=None if account is None else account.of_day(),
                least_priority=self._server.settings.batch_priority,
            )
            task = asyncio.create_task(answer_of(self._server, HANDLERS[request.url], call, body))
            answer = await task
            self._server.audit(call, answer.status)
            if answer.status not in (429, 503) or answer.retry_after_s is None:
                return answer
            await asyncio.sleep(answer.retry_after_s)

    async def _keep(
        self, batch: BatchInput, number: int, request: Line, answer: HandlerAnswer | None, error: dict[str, str] | None
    ) -> None:
        result: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(16)}", "custom_id": request.custom_id}
        is_error = True
        if answer is not None:
            is_error = answer.status >= 400
            result["response"] = {
                "status_code": answer.status,
                "request_id": f"req_{secrets.token_hex(16)}",
                "body": msgspec.Raw(answer.body),
            }
        result = {"response": None, **result, "error": error}
        await self._table.add_result(batch.batch_id, number, is_error, encode(result))
