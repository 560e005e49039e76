"""Tool calls in Ollama's shape: whole calls only, with arguments as an object."""

import json
from collections.abc import Iterable
from typing import Any

from jserve.api.generation.transcript import ToolCall
from jserve.text.output.pieces import ToolCallDelta


class ToolCallGatherer:
    """Puts the deltas of a stream together, and gives a call out once the next has begun or all is said."""

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._num_sent = 0

    def push(self, deltas: Iterable[ToolCallDelta]) -> None:
        """Take what an update adds."""
        for delta in deltas:
            while len(self._calls) <= delta.index:
                self._calls.append(ToolCall())
            call = self._calls[delta.index]
            call.id = delta.id or call.id
            call.name = delta.name or call.name
            call.arguments += delta.arguments

    def take(self, *, is_last: bool) -> list[dict[str, Any]]:
        """Calls that are complete and have not been taken."""
        end = len(self._calls) if is_last else max(self._num_sent, len(self._calls) - 1)
        taken = render_tool_calls(self._calls[self._num_sent : end], start=self._num_sent)
        self._num_sent = end
        return taken


def render_tool_calls(calls: Iterable[ToolCall], start: int = 0) -> list[dict[str, Any]]:
    """A call whose arguments the token limit has cut off cannot be an object, and is left out."""
    return [
        {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}
        for index, call in enumerate(calls, start)
        if (arguments := _parsed(call.arguments)) is not None
    ]


def _parsed(arguments: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
