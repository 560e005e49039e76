"""All updates of one choice put together, for an answer that is not streamed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jserve.api.generation.choice import ChoiceUpdate
from jserve.protocol import TokenLogprobs


@dataclass(slots=True)
class ToolCall:
    """A finished tool call. `arguments` is a JSON object as text."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Transcript:
    """A finished choice. `logprobs` is None where none were asked for."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None

    @classmethod
    def of(cls, updates: Sequence[ChoiceUpdate], num_choices: int) -> "list[Transcript]":
        """One transcript per choice, by index."""
        texts: list[list[str]] = [[] for _ in range(num_choices)]
        done = [cls(index) for index in range(num_choices)]
        for update in updates:
            choice = done[update.index]
            texts[update.index].append(update.text)
            choice.token_ids += update.token_ids
            if update.prompt_logprobs is not None:
                choice.prompt_logprobs = update.prompt_logprobs
            if update.is_bare_text:
                continue
            if update.logprobs is not None:
                choice.logprobs = choice.logprobs or []
                choice.logprobs += update.logprobs
            choice.reasoning += update.reasoning
            choice._add_tool_calls(update)
            choice.finish_reason = update.finish_reason
            choice.stop_reason = update.stop_reason
        for choice, pieces in zip(done, texts, strict=True):
            choice.text = "".join(pieces)
        return done

    def _add_tool_calls(self, update: ChoiceUpdate) -> None:
        for delta in update.tool_calls:
            while len(self.tool_calls) <= delta.index:
                self.tool_calls.append(ToolCall())
            call = self.tool_calls[delta.index]
            call.id = delta.id or call.id
            call.name = delta.name or call.name
            call.arguments += delta.arguments
