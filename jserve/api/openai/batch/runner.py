"""The life of every batch: checked, answered, written into files. It goes on where a killed process stopped."""

import asyncio
import contextlib
import logging
import time
from functools import partial

from jserve.api.context import ServerContext
from jserve.api.openai.batch.answering import URLS, BatchInput, LineAnswerer
from jserve.api.openai.batch.lines import check_lines
from jserve.api.openai.batch.pace import Pace
from jserve.api.store.batches import Batch, RequestCounts
from jserve.api.store.files import FileTable
from jserve.errors import StorageError

logger = logging.getLogger(__name__)

_GONE = {"code": "missing_file", "message": "the input file was deleted", "line": None, "param": None}
_LOOK_S = 60.0
"""How often batches are looked for that nobody works on, and files that have expired."""


class BatchRunner:
    """Works on all batches of one server at once, which share its pace."""

    def __init__(self, server: ServerContext, files: FileTable) -> None:
        self._server = server
        self._files = files
        self._table = server.store.batches
        self._answerer = LineAnswerer(server, Pace(server.generator, server.client))
        self._deadlines: dict[str, asyncio.Timeout] = {}
        self._open: set[str] = set()
        self._wake = asyncio.Event()
        self._table.on_added = self._wake.set
        self._table.on_cancelling = self._cancel

    async def run(self) -> None:
        """Work until cancelled; what is under way then is done again at the next start."""
        async with asyncio.TaskGroup() as works:
            while True:
                self._wake.clear()
                with contextlib.suppress(StorageError):  # It is logged.
                    for owner, batch in await self._table.unfinished():
                        if batch.id not in self._open:
                            self._open.add(batch.id)
                            works.create_task(self._work(owner, batch))
                    await self._delete_old()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()

    async def _delete_old(self) -> None:
        """Delete files that have expired, and what is older than --storage-retention-hours."""
        await self._files.delete_expired()
        moment = time.time() - 3600 * self._server.settings.storage_retention_hours
        await self._table.delete_made_before(moment)
        await self._server.store.responses.delete_used_before(moment)

    def _cancel(self, batch_id: str) -> None:
        """A batch is to end."""
        if (deadline := self._deadlines.get(batch_id)) is not None:
            deadline.reschedule(asyncio.get_running_loop().time())
        self._wake.set()

    async def _work(self, owner: str, batch: Batch) -> None:
        """Bring a batch to its end. Where something is wrong with the disk, it is tried again later."""
        try:
            await self._bring_to_its_end(owner, batch)
        except StorageError:
            await asyncio.sleep(_LOOK_S)
        except Exception:
            logger.exception("batch %s cannot go on; it is tried again after a restart", batch.id)
            return
        self._open.discard(batch.id)

    async def _bring_to_its_end(self, owner: str, batch: Batch) -> None:
        source = BatchInput(
            batch.id,
            self._files.path(batch.input_file_id),
            batch.endpoint,
            partial(self._server.keys.of_owner, owner),
        )
        if batch.status == "validating" and not await self._is_sound(batch, source):
            return
        ending = "cancelled" if batch.status == "cancelling" else "completed"
        if batch.status in ("validating", "in_progress"):
            ending = await self._answer(owner, batch, source)
        if ending == "completed":
            await self._table.move(batch.id, "finalizing", unless=("cancelling",))
        errors = {"object": "list", "data": [_GONE]} if ending == "failed" else None
        await self._table.finish(owner, batch.id, ending, self._files, errors=errors)
        logger.info("batch %s is %s", batch.id, ending)

    async def _is_sound(self, batch: Batch, source: BatchInput) -> bool:
        """Check all lines; a batch with errors fails."""
        try:
            checked = await check_lines(source.path, source.endpoint, URLS, self._server.settings.max_request_bytes)
        except FileNotFoundError:
            errors = [_GONE]
        else:
            errors = [error.described() for error in checked.errors]
        if errors:
            await self._table.move(batch.id, "failed", errors={"object": "list", "data": errors})
            logger.info("batch %s failed: %s", batch.id, errors[0]["code"])
            return False
        counts = RequestCounts(total=checked.num_lines)
        await self._table.move(batch.id, "in_progress", unless=("cancelling",), request_counts=counts)
        return True

    async def _answer(self, owner: str, batch: Batch, source: BatchInput) -> str:
        """Answer the lines, and say how the batch ends."""
        try:
            async with asyncio.timeout(max(0.0, batch.expires_at - time.time())) as deadline:
                self._deadlines[batch.id] = deadline
                newest = await self._table.find(owner, batch.id)  # It may have been cancelled while it was checked.
                if newest is not None and newest.status == "cancelling":
                    return "cancelled"
                await self._answerer.answer_all(source)
        except TimeoutError:
            newest = await self._table.find(owner, batch.id)
            if newest is not None and newest.status == "cancelling":
                return "cancelled"
            with contextlib.suppress(FileNotFoundError):
                await self._answerer.expire_rest(source)
            return "expired"
        except FileNotFoundError:
            return "failed"
        finally:
            del self._deadlines[batch.id]
        return "completed"
