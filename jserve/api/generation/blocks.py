"""An assistant's turn as a row of blocks: reasoning, text and tool calls, one after the other.

The Responses and the Messages API both answer in blocks that open, grow and close. The row is made from the
updates of one choice, whether they are streamed or all there, so both answers have the same blocks.
"""

import secrets
from dataclasses import dataclass
from typing import Literal

from jserve.api.generation.choice import ChoiceUpdate
from jserve.protocol import TokenLogprobs
from jserve.text.output.pieces import ToolCallDelta

BlockKind = Literal["reasoning", "text", "tool_call"]


@dataclass(slots=True)
class Block:
    """One block as it has grown so far. The text of a tool call is its arguments, a JSON object."""

    index: int
    kind: BlockKind
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; the one before it has closed."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """`text` was added to the open block, with the logprobs of `token_ids`: of text alone, where they are wanted."""

    block: Block
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Closed:
    """The block is complete."""

    block: Block


BlockEvent = Opened | Grown | Closed


class BlockRow:
    """Makes blocks of the updates of one choice.

    Whitespace alone opens no block of text: models write it between tool calls and around their reasoning.
    A turn without any block gets an empty text, since clients read the first one.
    """

    def __init__(self, *, with_reasoning: bool = True) -> None:
        self._with_reasoning = with_reasoning
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._open: Block | None = None
        self._open_call: int | None = None
        self._held = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    @property
    def has_tool_calls(self) -> bool:
        """Whether there is a tool call among the blocks."""
        return any(block.kind == "tool_call" for block in self.blocks)

    def push(self, update: ChoiceUpdate) -> list[BlockEvent]:
        """What an update does to the blocks."""
        if update.logprobs is not None:
            self._token_ids += update.token_ids
            self._logprobs += update.logprobs
        events: list[BlockEvent] = []
        if update.reasoning:
            events += self._push_reasoning(update.reasoning)
        if update.text:
            events += self._push_text(update.text)
        for call in update.tool_calls:
            events += self._push_call(call)
        if update.finish_reason is not None:
            self.finish_reason, self.stop_reason = update.finish_reason, update.stop_reason
            events += self._finish()
        return events

    @property
    def _kind(self) -> BlockKind | None:
        return self._open.kind if self._open is not None else None

    def _push_reasoning(self, text: str) -> list[BlockEvent]:
        if not self._with_reasoning:
            self._token_ids, self._logprobs = [], []
            return []
        events = self._switch("reasoning") if self._kind != "reasoning" else []
        return [*events, self._grow(text)]

    def _push_text(self, text: str) -> list[BlockEvent]:
        if self._kind == "text":
            return [self._grow(text)]
        self._held += text
        if self._held.isspace():
            return []
        text = self._held
        return [*self._switch("text"), self._grow(text)]

    def _push_call(self, call: ToolCallDelta) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if self._open_call != call.index:
            call_id = call.id or f"call_{secrets.token_hex(12)}"
            events += self._switch("tool_call", call_id, call.name or "")
            self._open_call = call.index
        if call.arguments:
            events.append(self._grow(call.arguments))
        return events

    def _switch(self, kind: BlockKind, call_id: str = "", name: str = "") -> list[BlockEvent]:
        """Close what is open and open a block; whitespace that waited for text is dropped or taken along."""
        events = self._close()
        self._held = ""
        self._open = Block(len(self.blocks), kind, call_id=call_id, name=name)
        self.blocks.append(self._open)
        return [*events, Opened(self._open)]

    def _grow(self, text: str) -> BlockEvent:
        block = self._open
        assert block is not None
        block.text += text
        token_ids, logprobs = self._token_ids, self._logprobs
        self._token_ids, self._logprobs = [], []
        if block.kind != "text":
            return Grown(block, text, [], [])
        return Grown(block, text, token_ids, logprobs)

    def _close(self) -> list[BlockEvent]:
        closed: list[BlockEvent] = [Closed(self._open)] if self._open is not None else []
        self._open = self._open_call = None
        return closed

    def _finish(self) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if not self.blocks:
            text = self._held
            events += self._switch("text")
            if text:
                events.append(self._grow(text))
        return events + self._close()
