"""A generation in the shape of the Messages API, streamed or whole."""

from collections.abc import Iterator
from typing import Any

import msgspec
from pydantic_core import from_json

from jserve.api.anthropic import shapes
from jserve.api.anthropic.conversation import CALL_PREFIX
from jserve.api.errors import Dialect, ErrorAnswer
from jserve.api.generation.blocks import Block, BlockEvent, BlockRow, Closed, Grown, Opened
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.http.answers import EVENT_STREAM
from jserve.api.json_writer import encode
from jserve.api.model.served_model import ServedModel


class MessageAnswer:
    """Renders the one choice of a request as a message of content blocks."""

    stream_type = EVENT_STREAM

    def __init__(self, model: ServedModel, generation: Generation, *, with_thinking: bool) -> None:
        self._model = model
        self._generation = generation
        self._id = generation.request.public_id
        self._row = BlockRow(with_reasoning=with_thinking)
        self._has_begun = False

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """The events for what `updates` add; the message begins before the first."""
        shown = [] if self._has_begun else [shapes.MessageStart(self._message()), shapes.Ping()]
        self._has_begun = True
        for update in updates:
            for event in self._row.push(update):
                shown += self._events(event)
        return b"".join(shapes.named_event(shape) for shape in shown)

    def last_chunk(self) -> bytes:
        """Why the message ended, the usage, and the end."""
        delta = shapes.StopDelta(self._stop_reason(), self._stop_sequence())
        end = shapes.MessageDelta(delta, self._usage())
        return shapes.named_event(end) + shapes.named_event(shapes.MessageStop())

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as an event, which ends the stream."""
        return b"event: error\ndata: %b\n\n" % problem.body(Dialect.ANTHROPIC)

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add."""
        for update in updates:
            self._row.push(update)

    def whole(self) -> Iterator[bytes]:
        """The message. It has no logprobs, so it is never large."""
        yield encode(
            self._message(
                content=[_content(block) for block in self._row.blocks],
                stop_reason=self._stop_reason(),
                stop_sequence=self._stop_sequence(),
            )
        )

    def _events(self, event: BlockEvent) -> Iterator[msgspec.Struct]:
        match event:
            case Opened(block):
                yield shapes.ContentBlockStart(block.index, _empty(block))
            case Grown(block, text):
                yield shapes.ContentBlockDelta(block.index, _delta(block, text))
            case Closed(block):
                if block.kind == "reasoning":
                    yield shapes.ContentBlockDelta(block.index, shapes.SignatureDelta())
                yield shapes.ContentBlockStop(block.index)

    def _message(self, **known: Any) -> shapes.Message:
        return shapes.Message(id=self._id, model=self._model.name, usage=self._usage(), **known)

    def _usage(self) -> shapes.MessageUsage:
        usage = self._generation.usage(with_details=True)
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details else 0
        return shapes.MessageUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)

    def _stop_reason(self) -> str:
        row = self._row
        if row.finish_reason == "length":
            return "max_tokens"
        if row.has_tool_calls:
            return "tool_use"
        return "end_turn" if self._stop_sequence() is None else "stop_sequence"

    def _stop_sequence(self) -> str | None:
        row = self._row
        return row.stop_reason if isinstance(row.stop_reason, str) and not row.has_tool_calls else None


def _empty(block: Block) -> shapes.ContentBlock:
    match block.kind:
        case "reasoning":
            return shapes.ThinkingBlock("")
        case "tool_call":
            return shapes.ToolUseBlock(_call_id(block), block.name, {})
        case "text":
            return shapes.TextBlock("")


def _delta(block: Block, text: str) -> shapes.TextDelta | shapes.ThinkingDelta | shapes.InputJsonDelta:
    match block.kind:
        case "reasoning":
            return shapes.ThinkingDelta(text)
        case "tool_call":
            return shapes.InputJsonDelta(text)
        case "text":
            return shapes.TextDelta(text)


def _content(block: Block) -> shapes.ContentBlock:
    match block.kind:
        case "reasoning":
            return shapes.ThinkingBlock(block.text)
        case "tool_call":
            return shapes.ToolUseBlock(_call_id(block), block.name, _arguments(block.text))
        case "text":
            return shapes.TextBlock(block.text)


def _call_id(block: Block) -> str:
    return f"{CALL_PREFIX}{block.call_id}"


def _arguments(text: str) -> Any:
    """The arguments as an object. Of a call that a limit cut off, what is complete, as the client reads a stream."""
    try:
        return from_json(text or "{}", allow_partial=True)
    except ValueError:
        return {}
