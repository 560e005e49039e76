"""`truncation: auto`: the oldest turns are dropped until the conversation fits the context."""

from typing import Any

from jserve.api.call import Call
from jserve.api.context import ServerContext
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.chat import prepare_chat
from jserve.errors import RequestError

_TOO_LONG = ("input_tokens", "input_text")


async def drop_oldest_turns(server: ServerContext, call: Call, body: ChatBody, model: ServedModel) -> ChatBody:
    """`body` without as many of its oldest turns as do not fit.

    A turn is a message of the user's with all that follows it, so that no call loses its output and templates
    that demand alternating roles stay content. System messages at the start stay. Raises RequestError where
    even the last turn alone does not fit.
    """
    starts = _turn_starts(body.messages)
    if not starts or await _fits(server, call, body, model):
        return body
    kept = [message for message in body.messages[: starts[0]] if message["role"] in ("system", "developer")]
    low, high = 1, len(starts) - 1
    while low < high:  # The fewest dropped turns that fit; with the last turn alone the caller finds out.
        middle = (low + high) // 2
        if await _fits(server, call, _without(body, kept, starts[middle]), model):
            high = middle
        else:
            low = middle + 1
    return _without(body, kept, starts[high])


def _turn_starts(messages: list[dict[str, Any]]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "user"]


def _without(body: ChatBody, kept: list[dict[str, Any]], start: int) -> ChatBody:
    return body.model_copy(update={"messages": [*kept, *body.messages[start:]]})


async def _fits(server: ServerContext, call: Call, body: ChatBody, model: ServedModel) -> bool:
    try:
        await prepare_chat(server, call, body, model)
    except RequestError as error:
        if error.param in _TOO_LONG:
            return False
        raise
    return True
