"""Responses that nobody waits for: answered behind, and fetched with GET /v1/responses/{id} when they are complete."""

import asyncio
import logging

from jserve.api.call import Call
from jserve.api.context import ServerContext
from jserve.api.errors import answer_for
from jserve.api.generation.generation import Generation
from jserve.api.json_writer import encode
from jserve.api.openai.responses_api import shapes
from jserve.api.openai.responses_api.answer import ResponsesAnswer
from jserve.api.openai.responses_api.body import ResponsesBody
from jserve.api.openai.responses_api.memory import remember
from jserve.api.store.responses import Turn

logger = logging.getLogger(__name__)


def answer_behind(
    server: ServerContext, call: Call, body: ResponsesBody, answer: ResponsesAnswer, generation: Generation
) -> shapes.ResponseObject:
    """The response as it begins. It is remembered now, and again at its end.

    The places that its account counts stay taken until then.
    """
    begun = answer.describe("in_progress")
    remember(server, call.key.owner, body, begun, is_open=True)
    num_places, call.num_places, call.goes_on = call.num_places, 0, True
    task = asyncio.create_task(_finish(server, call, body, answer, generation, num_places))
    server.background[call.key.owner, begun.id] = task
    task.add_done_callback(lambda _: server.background.pop((call.key.owner, begun.id), None))
    return begun


async def _finish(
    server: ServerContext,
    call: Call,
    body: ResponsesBody,
    answer: ResponsesAnswer,
    generation: Generation,
    num_places: int,
) -> None:
    status = 499
    try:
        await generation.rest(answer.collect)
        answer.finished()  # Which is remembered.
        status = 200
    except Exception as error:
        problem = answer_for(error)
        status = problem.status
        failed = answer.describe("failed", error=shapes.Failure(problem.message))
        remember(server, call.key.owner, body, failed)
    finally:
        server.generator.finish(generation)
        if call.account is not None:
            call.account.close(num_places)
        server.audit(call, status)


def cancel(server: ServerContext, owner: str, turn: Turn) -> bytes:
    """End a response that is being answered. Returns the response object, which stays so."""
    if not turn.is_open:
        return turn.body
    if (task := server.background.get((owner, turn.id))) is not None:
        task.cancel()
    cancelled = encode(turn.response() | {"status": "cancelled"})
    server.store.responses.put(owner, Turn(turn.id, turn.previous_id, turn.input, cancelled, is_open=False))
    return cancelled


async def fail_abandoned(server: ServerContext) -> None:
    """Those that were being answered when an earlier process ended are failed: nobody answers them any more."""
    error = {"code": "server_error", "message": "the server was restarted before the response was complete"}
    for owner, turn in await server.store.responses.open_ones():
        failed = encode(turn.response() | {"status": "failed", "error": error})
        server.store.responses.put(owner, Turn(turn.id, turn.previous_id, turn.input, failed, is_open=False))
        logger.info("response %s was not complete when the server ended, and is failed", turn.id)
