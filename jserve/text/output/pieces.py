"""What a parser makes of a model's text: content, reasoning and tool calls, piece by piece.

One parser serves the streamed and the whole answer, since the whole one is the pieces put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a piece adds to the `index`-th tool call. `id` and `name` come once, with the call's first delta.

    `arguments` put together are one JSON object, as text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class OutputPiece:
    """What some text adds to a message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


def joined(pieces: Sequence[OutputPiece]) -> OutputPiece:
    """All pieces as one, in which each call has one delta at most."""
    deltas: dict[int, ToolCallDelta] = {}
    for delta in (delta for piece in pieces for delta in piece.tool_calls):
        before = deltas.get(delta.index, ToolCallDelta(delta.index))
        deltas[delta.index] = ToolCallDelta(
            delta.index, before.id or delta.id, before.name or delta.name, before.arguments + delta.arguments
        )
    return OutputPiece(
        "".join(piece.content for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        list(deltas.values()),
    )


class OutputParser(Protocol):
    """Splits the text of one choice. All pieces put together are the same however the text was cut."""

    @property
    def visible_tokens(self) -> frozenset[int]:
        """Special tokens that the parser must see in the text, though the request skips special tokens."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""

    def push(self, text: str) -> OutputPiece:
        """What is certain now and was not before."""

    def finish(self, *, is_cut: bool = False) -> OutputPiece:
        """What was held back; the text has ended. `is_cut`: a limit or a stop string ended it, not the model."""

    def finish_reason(self, reason: str) -> str:
        """The finish reason of the message, from that of the text ("stop" becomes "tool_calls")."""
