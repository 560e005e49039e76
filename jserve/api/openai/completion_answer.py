"""A generation in completions' shape, streamed or whole."""

from msgspec import UNSET

from jserve.api.errors import ErrorAnswer
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.generation.transcript import Transcript
from jserve.api.http.answers import EVENT_STREAM
from jserve.api.json_writer import encode
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.answer_frame import AnswerFrame
from jserve.api.openai.bodies import CompletionBody
from jserve.api.openai.logprobs import LogprobsFormatter, join_logprobs, prompt_logprobs
from jserve.api.openai.shapes import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    PromptLogprobs,
)
from jserve.api.settings import ServerSettings
from jserve.protocol import TokenLogprobs


class CompletionAnswer:
    """Renders one completions request's choices."""

    stream_type = EVENT_STREAM

    def __init__(
        self, body: CompletionBody, model: ServedModel, generation: Generation, settings: ServerSettings
    ) -> None:
        self._frame = AnswerFrame(body, model, generation, settings)
        self._generation = generation
        self._tokenizer = model.tokenizer
        as_ids = bool(body.return_tokens_as_token_ids)
        self._formatters = [
            LogprobsFormatter(
                model.tokenizer, as_token_ids=as_ids, chosen=generation.request.sampling.logprob_token_ids
            )
            for _ in range(generation.num_choices)
        ]
        self._echo = bool(body.echo)
        self._num_top = body.logprobs
        self._num_prompt_top = body.prompt_logprobs
        self._begun = [False] * generation.num_choices

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes:
        """One event per update that has something to say; an echoed prompt comes with a choice's first."""
        events = []
        for update in updates:
            if self._frame.is_bare and update.is_bare_text and self._begun[update.index]:
                if update.text:
                    events.append(self._text_event(update.index, update.text))
            elif self._is_worth_sending(update):
                events.append(self._event(update))
        return b"".join(events)

    def last_chunk(self) -> bytes:
        """The usage, where it was asked for, and the end."""
        return self._frame.last_chunk(CompletionChunk)

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as an event, and the end."""
        return self._frame.error(problem)

    def whole(self, updates: list[ChoiceUpdate]) -> bytes:
        """The body that is not streamed."""
        choices = [self._choice(done) for done in Transcript.of(updates, self._generation.num_choices)]
        return encode(self._frame.whole(Completion, choices))

    def _text_event(self, index: int, text: str) -> bytes:
        return self._frame.text_event(CompletionChunk, index, lambda hole: CompletionChunkChoice(index, hole), text)

    def _event(self, update: ChoiceUpdate) -> bytes:
        index = update.index
        is_first = not self._begun[index]
        self._begun[index] = True
        text = self._prompt_text(index) + update.text if is_first else update.text
        choice = CompletionChunkChoice(
            index,
            text,
            self._logprobs(index, update.token_ids, update.logprobs, update.prompt_logprobs),
            update.finish_reason,
            update.stop_reason,
            update.token_ids if self._frame.with_ids else UNSET,
            self._prompt_ids(index) if self._frame.with_ids and is_first else UNSET,
        )
        return self._frame.event(CompletionChunk, choice, is_last=update.finish_reason is not None)

    def _choice(self, done: Transcript) -> CompletionChoice:
        return CompletionChoice(
            done.index,
            self._prompt_text(done.index) + done.text,
            self._logprobs(done.index, done.token_ids, done.logprobs, done.prompt_logprobs),
            done.finish_reason,
            done.stop_reason,
            done.token_ids if self._frame.with_ids else None,
            self._prompt_logprobs(done),
            self._prompt_ids(done.index) if self._frame.with_ids else None,
        )

    def _is_worth_sending(self, update: ChoiceUpdate) -> bool:
        """False while text is held back and nothing else is new."""
        has_news = update.text or update.finish_reason is not None or update.logprobs
        is_echo = self._echo and not self._begun[update.index]
        return bool(has_news or is_echo or self._frame.with_ids)

    def _prompt_text(self, index: int) -> str:
        request = self._generation.request
        return request.prompts[index // request.sampling.n].text if self._echo else ""

    def _prompt_ids(self, index: int) -> list[int]:
        request = self._generation.request
        return request.prompts[index // request.sampling.n].token_ids

    def _logprobs(
        self,
        index: int,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        of_prompt: list[TokenLogprobs] | None,
    ) -> CompletionLogprobs | None:
        """Of an echoed prompt, where this is the choice's beginning, and of the tokens."""
        formatter, parts = self._formatters[index], []
        if self._echo and self._num_top is not None and of_prompt is not None:
            text = self._prompt_text(index)
            parts.append(formatter.echo(text, self._prompt_ids(index), of_prompt, self._num_top))
        if logprobs is not None:
            parts.append(formatter.completion(token_ids, logprobs))
        return join_logprobs(parts) if parts else None

    def _prompt_logprobs(self, done: Transcript) -> PromptLogprobs | None:
        if self._num_prompt_top is None:
            return None
        scores = done.prompt_logprobs or []
        return prompt_logprobs(self._tokenizer, self._prompt_ids(done.index), scores, self._num_prompt_top)
