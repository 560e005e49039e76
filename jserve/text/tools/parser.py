"""The parser of one message: reasoning first, then content and calls. It serves streamed and whole answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jserve.text.output.draft import Draft, call_id
from jserve.text.output.feed import Malformed, Reading, TextEnded, TextFeed
from jserve.text.output.pieces import OutputPiece
from jserve.text.output.reasoning import ReasoningFormat, Thinking
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.tool import Tool


class MessageParser:
    """An `OutputParser` that runs a format's reader over the text as it comes.

    `tools` None: calls are not looked for, all is content (but for channels, which are always taken apart).
    `called_reason` is the finish reason of a message that stopped and has calls. `is_forced`: a grammar lets nothing
    but calls through, so what a limit leaves of one is no content.
    """

    def __init__(
        self,
        reasoning: ReasoningFormat | None = None,
        thinking: Thinking = Thinking.MAYBE,
        tool_format: ToolFormat | None = None,
        tools: Mapping[str, Tool] | None = None,
        *,
        visible_tokens: frozenset[int] = frozenset(),
        called_reason: str = "tool_calls",
        is_forced: bool = False,
        max_calls: int | None = None,
        with_reasoning: bool = True,
        new_id: Callable[[], str] = call_id,
    ) -> None:
        self.visible_tokens = visible_tokens
        self._called_reason = called_reason
        self._is_forced = is_forced
        self._markers = tool_format.markers if tool_format is not None else ()
        self._feed = TextFeed()
        self._draft = Draft(max_calls=max_calls, with_reasoning=with_reasoning, new_id=new_id)
        self._reading: Reading[None] | None = self._read(reasoning, thinking, tool_format, tools or {})
        if reasoning is not None and thinking is Thinking.OPEN:
            self._draft.begin_reasoning()

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._draft.is_reasoning

    def push(self, text: str) -> OutputPiece:
        """What is certain now and was not before."""
        self._feed.push(text)
        self._advance()
        return self._draft.take()

    def finish(self, *, is_cut: bool = False) -> OutputPiece:
        """What was held back; the text has ended. The beginning of a call, where the text `is_cut`, is left out."""
        self._feed.end()
        self._advance()
        self._draft.end()
        piece = self._draft.take()
        if self._is_forced:
            piece.content = ""
        elif is_cut:
            starts = [at for marker in self._markers if (at := piece.content.find(marker)) >= 0]
            piece.content = piece.content[: min(starts, default=None)]
        return piece

    def finish_reason(self, reason: str) -> str:
        """ "stop" of a message with calls becomes what a client looks for."""
        return self._called_reason if reason == "stop" and self._draft.has_calls else reason

    def _advance(self) -> None:
        if self._reading is None:
            self._draft.content(self._feed.rest())
            return
        try:
            next(self._reading)
        except (StopIteration, TextEnded):
            self._reading = None
            self._draft.content(self._feed.rest())

    def _read(
        self,
        reasoning: ReasoningFormat | None,
        thinking: Thinking,
        tool_format: ToolFormat | None,
        tools: Mapping[str, Tool],
    ) -> Reading[None]:
        if reasoning is not None:
            yield from reasoning.read(self._feed, self._draft, thinking)
        if tool_format is None:
            return
        try:
            yield from tool_format.read(self._feed, self._draft, tools)
        except Malformed as error:  # A format handles its own; nothing that a model writes may fail a request.
            self._draft.content(self._feed.recorded() + error.read)
