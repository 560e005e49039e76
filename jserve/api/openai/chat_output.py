"""From a chat request to what its answer may be and how it is taken apart: grammar, budget of thought, parser."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from jserve.api.context import ServerContext
from jserve.api.errors import invalid
from jserve.api.model.speech import ModelSpeech
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.structured import constrain, structured_output, with_grammar
from jserve.api.openai.tool_use import ToolUse
from jserve.errors import FieldPath, RequestError
from jserve.protocol import SamplingParams, ThinkingBudget
from jserve.text.grammars.grammar import after_reasoning
from jserve.text.grammars.grammar_worker import Reasoning
from jserve.text.grammars.json_schema import Strictness
from jserve.text.output.draft import call_id, short_call_id
from jserve.text.output.pieces import OutputParser
from jserve.text.output.reasoning import Thinking
from jserve.text.tools.call_grammar import CallGrammar
from jserve.text.tools.harmony import ANALYSIS, END
from jserve.text.tools.mistral import Mistral
from jserve.text.tools.parser import MessageParser
from jserve.text.tools.tool import Tool


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
                FieldPath("thinking_token_budget"),
                f" must be -1 (no limit) or at least 0, got {max_tokens}.",
                param="thinking_token_budget",
                value=max_tokens,
            )
        if not self.speech.reasons:
            raise RequestError(
                FieldPath("thinking_token_budget"),
                " needs a model that reasons between tags, and this one's chat template has none; leave the field "
                "out, or start the server with --reasoning-parser NAME",
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

    async def constrain(self, server: ServerContext, body: ChatBody, sampling: SamplingParams) -> SamplingParams:
        """`sampling`, held to the calls and the form that `body` asks for, if it does. Raises RequestError.

        Where the answer must be a call, the form of an answer does not matter; else it may be either.
        """
        use = self.tool_use
        if not use.tools and self.speech.has_channels:
            return await self._constrain_final(server, body, sampling)
        if not use.tools:
            return await constrain(server, body, sampling, self.reasoning_before_answer)
        answer = (await constrain(server, body, sampling)).grammar
        if not use.is_constrained and not answer:
            return sampling
        is_strict = all(tool.is_strict for tool in use.tools.values())
        try:
            return await self._under_calls(server, sampling, use.tools, answer, "enforceable")
        except RequestError:
            if is_strict:
                raise
        # Something in a schema that is not strict is more than the compiler bears, or makes no sense as a whole.
        with suppress(RequestError):
            return await self._under_calls(server, sampling, use.tools, answer, "shape")
        tools = {name: tool if tool.is_strict else tool.without_schema() for name, tool in use.tools.items()}
        return await self._under_calls(server, sampling, tools, answer, "shape")

    async def _under_calls(
        self,
        server: ServerContext,
        sampling: SamplingParams,
        tools: Mapping[str, Tool],
        answer: str,
        strictness: Strictness,
    ) -> SamplingParams:
        """`sampling`, held to calls of `tools`, or to the grammar `answer` where there is one."""
        grammar = self._call_grammar(tools, answer, strictness)
        if (reasoning := self.reasoning_before_answer) is not None:
            grammar = after_reasoning(grammar, reasoning.begin, reasoning.end, is_open=reasoning.is_open)
        verdict = await server.grammars.check(grammar, param="tools")
        return with_grammar(sampling, grammar, verdict.num_bytes)

    async def _constrain_final(self, server: ServerContext, body: ChatBody, sampling: SamplingParams) -> SamplingParams:
        """The form is that of the last channel's message; what the model thinks before it is free."""
        answer = (await constrain(server, body, sampling)).grammar
        spec = structured_output(body)
        if not answer or spec is None:
            return sampling
        grammar = CallGrammar(self.speech.tool_format, {}, False, self._special_id).final_answer(answer)
        verdict = await server.grammars.check(grammar, param=spec.field)
        return with_grammar(sampling, grammar, verdict.num_bytes)

    def _call_grammar(self, tools: Mapping[str, Tool], answer: str, strictness: Strictness) -> str:
        use = self.tool_use
        if not use.is_forced and not answer:
            # What is not strict is held to no more than being an object.
            tools = {name: tool if tool.is_strict else tool.without_schema() for name, tool in tools.items()}
        writer = CallGrammar(self.speech.tool_format, tools, use.is_parallel, self._special_id, strictness)
        try:
            if use.is_forced:
                return writer.forced()
            return writer.or_answer(answer) if answer else writer.free()
        except RequestError as error:
            raise RequestError(f"tools: {error}", param="tools") from error

    @property
    def reasoning_before_answer(self) -> Reasoning | None:
        """The reasoning that a grammar must let through before the answer; None where none may come."""
        if self.speech.reasoning is None or self.thinking is Thinking.OVER:
            return None
        begin, end = self.speech.reasoning.tags
        return Reasoning(
            self._special_id(begin) or begin, self._special_id(end) or end, is_open=self.thinking is Thinking.OPEN
        )

    def _special_id(self, text: str) -> int | None:
        """The token that `text` is to llguidance: it takes added tokens like <this> for special, whatever they are."""
        tokenizer = self.speech.tokenizer
        token = tokenizer.token_id(text)
        if token is None or not (tokenizer.is_special(token) or (text.startswith("<") and text.endswith(">"))):
            return None
        return token if token in tokenizer.backend.get_added_tokens_decoder() else None

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
            is_forced=use.is_forced,
            max_calls=max_calls if use.tools else 0,
            with_reasoning=self.with_reasoning,
            new_id=short_call_id if isinstance(speech.tool_format, Mistral) else call_id,
        )
