"""A generation in chat's shape, streamed or whole."""

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from jserve.api.errors import ErrorAnswer
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.generation.transcript import Transcript
from jserve.api.http.answers import EVENT_STREAM
from jserve.api.json_writer import HOLE, encode_around_holes, list_in_pieces
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.answer_frame import AnswerFrame
from jserve.api.openai.bodies import ChatBody
from jserve.api.openai.logprobs import LogprobsFormatter, prompt_logprobs
from jserve.api.openai.shapes import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatToolCall,
    ChatToolCallDelta,
    FunctionCall,
)
from jserve.api.settings import ServerSettings
from jserve.text.output.pieces import ToolCallDelta


class ChatAnswer:
    """Renders one chat request's choices."""

    stream_type = EVENT_STREAM

    def __init__(self, body: ChatBody, model: ServedModel, generation: Generation, settings: ServerSettings) -> None:
        self._frame = AnswerFrame(body, model, generation, settings)
        self._generation = generation
        self._tokenizer = model.tokenizer
        self._formatter = LogprobsFormatter(
            model.tokenizer,
            as_token_ids=bool(body.return_tokens_as_token_ids),
            chosen=generation.request.sampling.logprob_token_ids,
        )
        self._with_prompt = bool(body.return_prompt_text)
        self._echo = _echoed_text(body)
        self._has_begun = False
        self._transcripts = [Transcript(index) for index in range(generation.num_choices)]

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """One event per update that has something to say; the roles come before the first."""
        events = [] if self._has_begun else self._begin()
        for update in updates:
            if self._frame.is_bare and update.is_bare_text:
                if update.text:
                    events.append(self._text_event(update.index, update.text))
            elif self._is_worth_sending(update):
                events.append(self._event(update))
        return b"".join(events)

    def last_chunk(self) -> bytes:
        """The usage, where the request wants it, and the end."""
        return self._frame.last_chunk(ChatChunk)

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as an event, and the end."""
        return self._frame.error(problem)

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add."""
        for update in updates:
            self._transcripts[update.index].add(update)

    def whole(self) -> Iterator[bytes]:
        """The body that is not streamed."""
        prompt, num_best = self._generation.request.prompts[0], self._generation.request.sampling.prompt_logprobs
        before, *between, after = encode_around_holes(
            self._frame.whole(
                ChatCompletion,
                [HOLE],
                prompt_logprobs=None if num_best is None else [HOLE],
                prompt_token_ids=prompt.token_ids if self._frame.with_ids else None,
                prompt_text=prompt.text if self._with_prompt else None,
            )
        )
        yield before
        for number, done in enumerate(self._transcripts):
            yield b"," if number else b""
            yield from self._choice(done)
        if num_best is not None:
            yield from between
            scores = self._transcripts[0].prompt_logprobs or ()
            yield from list_in_pieces(prompt_logprobs(self._tokenizer, prompt.token_ids, scores, num_best))
        yield after

    def _begin(self) -> list[bytes]:
        self._has_begun = True
        prompt = self._generation.request.prompts[0]
        return [
            self._frame.event(
                ChatChunk,
                ChatChunkChoice(index, ChatDelta(role="assistant", content=self._echo)),
                usage=self._frame.usage().before_output() if self._frame.usage_always else UNSET,
                prompt_token_ids=prompt.token_ids if self._frame.with_ids else UNSET,
                prompt_text=prompt.text if self._with_prompt else UNSET,
            )
            for index in range(self._generation.num_choices)
        ]

    def _text_event(self, index: int, text: str) -> bytes:
        return self._frame.text_event(
            ChatChunk, index, lambda hole: ChatChunkChoice(index, ChatDelta(content=hole)), text
        )

    def _event(self, update: ChoiceUpdate) -> bytes:
        is_last = update.finish_reason is not None
        choice = ChatChunkChoice(
            update.index,
            self._delta(update),
            self._logprobs(update),
            update.finish_reason,
            update.stop_reason if is_last else UNSET,
            update.token_ids if self._frame.with_ids else UNSET,
        )
        return self._frame.event(ChatChunk, choice, is_last=is_last)

    def _choice(self, done: Transcript) -> Iterator[bytes]:
        before, *behind = encode_around_holes(
            ChatChoice(
                done.index,
                self._message(done),
                None if done.logprobs is None else ChatLogprobs([HOLE]),
                done.finish_reason,
                done.stop_reason,
                done.token_ids.tolist() if self._frame.with_ids else None,
            )
        )
        yield before
        if done.logprobs is not None:
            yield from list_in_pieces(self._formatter.chat_batches(done.token_ids, done.logprobs))
        yield from behind

    def _delta(self, update: ChoiceUpdate) -> ChatDelta:
        is_other = bool(update.reasoning or update.tool_calls or update.finish_reason is not None)
        return ChatDelta(
            content=UNSET if is_other and not update.text else update.text,
            reasoning=update.reasoning or UNSET,
            reasoning_content=update.reasoning or UNSET,
            tool_calls=[_call_delta(call) for call in update.tool_calls] or UNSET,
        )

    def _message(self, done: Transcript) -> ChatMessage:
        calls = [ChatToolCall(call.id, FunctionCall(call.arguments, call.name)) for call in done.tool_calls]
        text = self._echo + done.text
        return ChatMessage(
            "assistant",
            text or None if calls or done.reasoning else text,
            reasoning=done.reasoning or None,
            reasoning_content=done.reasoning or None,
            tool_calls=calls or UNSET,
        )

    def _is_worth_sending(self, update: ChoiceUpdate) -> bool:
        """False while text is held back and nothing else is new."""
        has_news = (
            update.text or update.reasoning or update.tool_calls or update.finish_reason is not None or update.logprobs
        )
        return bool(has_news or self._frame.with_ids)

    def _logprobs(self, update: ChoiceUpdate) -> ChatLogprobs | UnsetType:
        if update.logprobs is None:
            return UNSET
        return ChatLogprobs(self._formatter.chat(update.token_ids, update.logprobs).content, refusal=[])


def _echoed_text(body: ChatBody) -> str:
    """With `echo`, what the last message says, where the answer goes on in its role: vLLM's rule."""
    last = body.messages[-1] if body.echo else {}
    is_of_the_answer = last.get("role") == "assistant" or body.add_generation_prompt is False
    content = last.get("content") if is_of_the_answer else ""
    if not isinstance(content, list):
        return str(content or "")
    return "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


def _call_delta(call: ToolCallDelta) -> ChatToolCallDelta:
    is_first = call.id is not None
    return ChatToolCallDelta(
        call.index,
        FunctionCall(call.arguments, call.name or UNSET),
        call.id or UNSET,
        "function" if is_first else UNSET,
    )
