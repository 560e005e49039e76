"""From a chat request to how its answer is taken apart: parser, and budget of thought."""

from collections.abc import Callable
from dataclasses import dataclass

from jserve.api.errors import invalid
from jserve.api.model_speech import ModelSpeech
from jserve.api.schemas import ChatBody
from jserve.api.tool_use import ToolUse
from jserve.errors import RequestError
from jserve.protocol import ThinkingBudget
from jserve.text.grammar import Marker
from jserve.text.grammar_worker import Reasoning
from jserve.text.output import OutputParser
from jserve.text.reasoning import Thinking
from jserve.text.tools.draft import call_id, short_call_id
from jserve.text.tools.harmony import ANALYSIS, END
from jserve.text.tools.mistral import Mistral
from jserve.text.tools.parser import MessageParser


@dataclass(frozen=True, slots=True)
class ChatOutput:
    """What is expected after one prompt. `thinking` is where the prompt leaves the model's reasoning."""

    speech: ModelSpeech
    tool_use: ToolUse
    thinking: Thinking
    with_reasoning: bool

    @classmethod
    def after(cls, prompt: str, body: ChatBody, speech: ModelSpeech, tool_use: ToolUse) -> "ChatOutput":
        """What is expected after this rendered prompt."""
        thinking = speech.reasoning.at_end_of(prompt) if speech.reasoning is not None else Thinking.MAYBE
        return cls(speech, tool_use, thinking, body.include_reasoning)

    @property
    def new_parser(self) -> Callable[[], OutputParser] | None:
        """Makes the parser of one choice; None where the text is the content as it is."""
        if not self.tool_use.tools and not self.speech.reasons:
            return None
        return self._parser

    def thinking_budget(self, max_tokens: int | None) -> ThinkingBudget | None:
        """The budget of `thinking_token_budget`; None and -1 set no limit. Raises RequestError."""
        if max_tokens is None or max_tokens == -1:
            return None
        if max_tokens < 0:
            raise invalid(
                f"thinking_token_budget must be -1 (no limit) or at least 0, got {max_tokens}.",
                "thinking_token_budget",
                max_tokens,
            )
        if not self.speech.reasons:
            raise RequestError(
                "thinking_token_budget needs a model that reasons between tags, and this one's chat template has "
                "none; leave the field out, or start the server with --reasoning-parser NAME",
                param="thinking_token_budget",
            )
        if self.thinking is Thinking.OVER:
            return None
        begin, end = (ANALYSIS, END) if self.speech.reasoning is None else self.speech.reasoning.tags
        encode = self.speech.tokenizer.encode
        return ThinkingBudget(
            max_tokens,
            tuple(encode(begin, add_special_tokens=False)),
            tuple(encode(end, add_special_tokens=False)),
            is_open=self.thinking is Thinking.OPEN,
        )

    @property
    def reasoning_before_answer(self) -> Reasoning | None:
        """The reasoning that comes before an answer whose form is given; None where none may come."""
        reasoning = self.speech.reasoning
        if reasoning is None or self.thinking is Thinking.OVER:
            return None
        begin, end = (self._marker(tag) for tag in reasoning.tags)
        return Reasoning(begin, end, is_open=self.thinking is Thinking.OPEN)

    def _marker(self, tag: str) -> Marker:
        """A tag as a grammar names it: the id of a special token, else its text."""
        tokenizer = self.speech.tokenizer
        token_id = tokenizer.token_id(tag)
        return tag if token_id is None or not tokenizer.is_special(token_id) else token_id

    def _parser(self) -> MessageParser:
        speech, use = self.speech, self.tool_use
        reads_calls = bool(use.tools) or speech.has_channels
        max_calls = None if use.is_parallel else 1
        return MessageParser(
            speech.reasoning,
            self.thinking,
            speech.tool_format if reads_calls else None,
            use.tools,
            visible_tokens=speech.visible_tokens(with_tools=bool(use.tools)),
            called_reason=use.called_reason,
            max_calls=max_calls if use.tools else 0,
            with_reasoning=self.with_reasoning,
            new_id=short_call_id if isinstance(speech.tool_format, Mistral) else call_id,
        )
