"""All updates of one choice put together, as they come, for an answer that is not streamed."""

from array import array
from dataclasses import dataclass, field

from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.packed_logprobs import PackedLogprobs


@dataclass(slots=True)
class ToolCall:
    """A finished tool call. `arguments` is a JSON object as text."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Transcript:
    """A choice as it grows, in little memory. `logprobs` is None where none are wanted."""

    index: int
    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    logprobs: PackedLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    prompt_logprobs: PackedLogprobs | None = None
    _texts: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The content."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """What the model thought."""
        return "".join(self._reasoning)

    def add(self, update: ChoiceUpdate) -> None:
        """Take what an update adds."""
        if update.text:
            self._texts.append(update.text)
        self.token_ids.extend(update.token_ids)
        if update.prompt_logprobs is not None:
            self.prompt_logprobs = update.prompt_logprobs
        if update.is_bare_text:
            return
        if update.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = PackedLogprobs()
            self.logprobs.extend(update.logprobs)
        if update.reasoning:
            self._reasoning.append(update.reasoning)
        self._add_tool_calls(update)
        self.finish_reason = update.finish_reason
        self.stop_reason = update.stop_reason

    def _add_tool_calls(self, update: ChoiceUpdate) -> None:
        for delta in update.tool_calls:
            while len(self.tool_calls) <= delta.index:
                self.tool_calls.append(ToolCall())
            call = self.tool_calls[delta.index]
            call.id = delta.id or call.id
            call.name = delta.name or call.name
            call.arguments += delta.arguments
