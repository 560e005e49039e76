"""A generation in completions' shape, streamed or whole."""

from collections.abc import Iterable, Iterator
from itertools import chain

from msgspec import UNSET

from jserve.api.errors import ErrorAnswer
from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.generation.generation import Generation
from jserve.api.generation.transcript import Transcript
from jserve.api.http.answers import EVENT_STREAM
from jserve.api.json_writer import HOLE, encode, encode_around_holes, list_in_pieces
from jserve.api.model.served_model import ServedModel
from jserve.api.openai.answer_frame import AnswerFrame
from jserve.api.openai.bodies import CompletionBody
from jserve.api.openai.logprobs import LogprobsFormatter, arrays_in_pieces, join_logprobs, prompt_logprobs
from jserve.api.openai.shapes import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
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
        shown: dict[int, tuple[str, list[int]]] = {}
        self._formatters = [
            LogprobsFormatter(
                model.tokenizer,
                as_token_ids=bool(body.return_tokens_as_token_ids),
                chosen=generation.request.sampling.logprob_token_ids,
                shown=shown,
            )
            for _ in range(generation.num_choices)
        ]
        self._echo = bool(body.echo)
        self._num_top = body.logprobs
        self._num_prompt_top = body.prompt_logprobs
        self._begun = [False] * generation.num_choices
        self._transcripts = [Transcript(index) for index in range(generation.num_choices)]

    def chunk(self, updates: list[ChoiceUpdate]) -> bytes | Iterator[bytes]:
        """One event per update that has something to say; an echoed prompt comes with a choice's first."""
        if self._echo and self._num_top is not None and any(update.prompt_logprobs for update in updates):
            return self._echo_in_pieces(updates)
        events = []
        for update in updates:
            if self._frame.is_bare and update.is_bare_text and self._begun[update.index]:
                if update.text:
                    events.append(self._text_event(update.index, update.text))
            elif self._is_worth_sending(update):
                events.append(self._event(update, self._logprobs(update)))
        return b"".join(events)

    def _echo_in_pieces(self, updates: list[ChoiceUpdate]) -> Iterator[bytes]:
        """The events of updates with the logprobs of a whole prompt, which take long to format."""
        for update in updates:
            parts = self._logprob_parts(update.index, update.token_ids, update.logprobs, update.prompt_logprobs)
            if parts is None:
                yield self._event(update, None)
                continue
            before, after = self._event(update, HOLE).split(encode(HOLE))
            yield before
            yield from arrays_in_pieces(parts)
            yield after

    def last_chunk(self) -> bytes:
        """The usage, where the request wants it, and the end."""
        return self._frame.last_chunk(CompletionChunk)

    def error(self, problem: ErrorAnswer) -> bytes:
        """The error as an event, and the end."""
        return self._frame.error(problem)

    def collect(self, updates: list[ChoiceUpdate]) -> None:
        """Keep what `updates` add."""
        for update in updates:
            self._transcripts[update.index].add(update)

    def whole(self) -> Iterator[bytes]:
        """The body that is not streamed."""
        before, after = encode_around_holes(self._frame.whole(Completion, [HOLE]))
        yield before
        for number, done in enumerate(self._transcripts):
            yield b"," if number else b""
            yield from self._choice(done)
        yield after

    def _text_event(self, index: int, text: str) -> bytes:
        return self._frame.text_event(CompletionChunk, index, lambda hole: CompletionChunkChoice(index, hole), text)

    def _event(self, update: ChoiceUpdate, logprobs: CompletionLogprobs | str | None) -> bytes:
        index = update.index
        is_first = not self._begun[index]
        self._begun[index] = True
        text = self._prompt_text(index) + update.text if is_first else update.text
        choice = CompletionChunkChoice(
            index,
            text,
            logprobs,
            update.finish_reason,
            update.stop_reason,
            update.token_ids if self._frame.with_ids else UNSET,
            self._prompt_ids(index) if self._frame.with_ids and is_first else UNSET,
        )
        return self._frame.event(CompletionChunk, choice, is_last=update.finish_reason is not None)

    def _choice(self, done: Transcript) -> Iterator[bytes]:
        parts = self._logprob_parts(done.index, done.token_ids, done.logprobs, done.prompt_logprobs)
        before, *behind = encode_around_holes(
            CompletionChoice(
                done.index,
                self._prompt_text(done.index) + done.text,
                None if parts is None else HOLE,
                done.finish_reason,
                done.stop_reason,
                done.token_ids.tolist() if self._frame.with_ids else None,
                None if self._num_prompt_top is None else [HOLE],
                self._prompt_ids(done.index) if self._frame.with_ids else None,
            )
        )
        yield before
        if parts is not None:
            yield from arrays_in_pieces(parts)
            yield behind.pop(0)
        if self._num_prompt_top is not None:
            scores, prompt_ids = done.prompt_logprobs or (), self._prompt_ids(done.index)
            yield from list_in_pieces(prompt_logprobs(self._tokenizer, prompt_ids, scores, self._num_prompt_top))
            yield behind.pop(0)

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

    def _logprobs(self, update: ChoiceUpdate) -> CompletionLogprobs | None:
        parts = self._logprob_parts(update.index, update.token_ids, update.logprobs, update.prompt_logprobs)
        return None if parts is None else join_logprobs(parts)

    def _logprob_parts(
        self,
        index: int,
        token_ids: Iterable[int],
        logprobs: Iterable[TokenLogprobs] | None,
        prompt_scores: Iterable[TokenLogprobs] | None,
    ) -> Iterator[CompletionLogprobs] | None:
        """Those of an echoed prompt, where this is the choice's beginning, and those of the tokens."""
        formatter, parts = self._formatters[index], []
        if self._echo and self._num_top is not None and prompt_scores is not None:
            text = self._prompt_text(index)
            parts.append(formatter.echo(text, self._prompt_ids(index), prompt_scores, self._num_top))
        if logprobs is not None:
            parts.append(formatter.completion(token_ids, logprobs))
        return chain.from_iterable(parts) if parts else None
