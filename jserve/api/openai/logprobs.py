"""The engine's logprobs in the two shapes of the OpenAI API.

Both write -9999 for a probability of zero, since JSON has no minus infinity. The alternatives are the most probable
tokens, best first, whether or not the sampled token is among them.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from jserve.api.json_writer import encode
from jserve.api.openai.shapes import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from jserve.protocol import TokenLogprobs
from jserve.text.tokenizers.tokenizer import Tokenizer

_Row = TypeVar("_Row")

BATCH = 48
"""Positions that are formatted in one go: with 20 alternatives each a millisecond."""
_FLOOR = -9999.0


class LogprobsFormatter:
    """Formats the positions of one choice, in order; keeps the text offset that completions need.

    `chosen` are the tokens of `logprob_token_ids`, which are shown instead of the best.
    """

    __slots__ = ("_as_ids", "_chosen", "_decoder", "_offset", "_shown_tokens", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        as_token_ids: bool = False,
        chosen: Sequence[int] = (),
        shown: dict[int, tuple[str, list[int]]] | None = None,
    ) -> None:
        """`shown` is where the texts and bytes of tokens are kept; formatters of one answer share it."""
        self._tokenizer = tokenizer
        self._as_ids = as_token_ids
        self._chosen = chosen
        self._offset = 0
        self._shown_tokens = {} if shown is None else shown
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def chat(self, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs]) -> ChatLogprobs:
        """`logprobs` of `token_ids`, which have the same length."""
        return ChatLogprobs([*self.chat_entries(token_ids, logprobs)])

    def chat_batches(self, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs]) -> Iterator[list[TokenLogprob]]:
        """The same, `BATCH` positions at a time."""
        return _batches(self.chat_entries(token_ids, logprobs))

    def chat_entries(self, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs]) -> Iterator[TokenLogprob]:
        """The same, one by one."""
        return (self._chat_entry(token, position) for token, position in zip(token_ids, logprobs, strict=True))

    def _chat_entry(self, token: int, position: TokenLogprobs) -> TokenLogprob:
        known, top = self._shown_tokens, []
        for other, logprob in self._alternatives(position):  # The innermost loop: calls cost more than what they do.
            text, raw = known.get(other) or self._shown(other)
            top.append(TopLogprob(text, logprob if logprob > _FLOOR else _FLOOR, raw))
        text, raw = self._shown(token)
        return TokenLogprob(text, _clamp(position.logprob), raw, top)

    def completion(self, token_ids: Iterable[int], logprobs: Iterable[TokenLogprobs]) -> Iterator[CompletionLogprobs]:
        """The same as parallel arrays. Of alternatives that decode to the same text, the best is kept.

        A token's offset is where its first character, or the one that it is part of, begins in the text.
        """
        for batch in _batches(zip(token_ids, logprobs, strict=True)):
            arrays = CompletionLogprobs([], [], [], [])
            for token, position in batch:
                self._append(arrays, token, position, self._alternatives(position))
                self._advance(self._tokenizer.token_bytes(token))
            yield arrays

    def echo(
        self, text: str, token_ids: Sequence[int], logprobs: Iterable[TokenLogprobs], count: int
    ) -> Iterator[CompletionLogprobs]:
        """A prompt, before its completion: `text` as it is echoed, and the logprobs from its second token on, of
        which the best `count` are shown. The first has none.
        """
        positions: Iterable[TokenLogprobs | None] = chain([None], logprobs)
        for batch in _batches(zip(token_ids, positions, strict=True)):
            arrays = CompletionLogprobs([], [], [], [])
            for token, position in batch:
                best = [] if position is None else zip(position.top_ids[:count], position.top_logprobs, strict=False)
                self._append(arrays, token, position, best)
                is_shown = not self._tokenizer.is_special(token) or text.startswith(
                    self._tokenizer.token_text(token), self._offset
                )
                if is_shown:  # a beginning-of-sequence token that the tokenizer put there is not
                    self._advance(self._tokenizer.token_bytes(token))
            yield arrays
        self._offset = len(text)
        self._decoder.reset()

    def _append(
        self,
        arrays: CompletionLogprobs,
        token: int,
        position: TokenLogprobs | None,
        alternatives: Iterable[tuple[int, float]],
    ) -> None:
        text = self._text(token)
        arrays.tokens.append(text)
        arrays.text_offset.append(self._offset)
        arrays.token_logprobs.append(None if position is None else _clamp(position.logprob))
        if position is None:
            arrays.top_logprobs.append(None)
            return
        best: dict[str, float] = {}
        for other, logprob in alternatives:
            best.setdefault(self._text(other), _clamp(logprob))
        best.setdefault(text, _clamp(position.logprob))
        arrays.top_logprobs.append(best)

    def _alternatives(self, position: TokenLogprobs) -> Iterable[tuple[int, float]]:
        if self._chosen:
            return zip(self._chosen, position.chosen_logprobs, strict=True)
        return zip(position.top_ids, position.top_logprobs, strict=True)

    def _advance(self, added: bytes) -> None:
        self._offset += len(self._decoder.decode(added))

    def _text(self, token: int) -> str:
        return self._shown(token)[0]

    def _shown(self, token: int) -> tuple[str, list[int]]:
        """A token's text and its bytes, made once: answers with 20 alternatives a token hold the same ones often."""
        shown = self._shown_tokens.get(token)
        if shown is None:
            text = f"token_id:{token}" if self._as_ids else self._tokenizer.token_text(token)
            shown = self._shown_tokens[token] = (text, list(self._tokenizer.token_bytes(token)))
        return shown


def _clamp(logprob: float) -> float:
    return max(logprob, _FLOOR)


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Iterable[TokenLogprobs], count: int
) -> Iterator[PromptLogprobs]:
    """The field `prompt_logprobs`, in batches: for each token of a prompt itself, and the `count` best in its place."""
    yield [None]
    for batch in _batches(zip(token_ids[1:], logprobs, strict=True)):
        yield [_prompt_entry(tokenizer, token, position, count) for token, position in batch]


def _prompt_entry(tokenizer: Tokenizer, token: int, position: TokenLogprobs, count: int) -> dict[str, PromptLogprob]:
    entries = {str(token): PromptLogprob(_clamp(position.logprob), position.rank, tokenizer.token_text(token))}
    best = zip(position.top_ids[:count], position.top_logprobs, strict=False)
    for rank, (other, logprob) in enumerate(best, 1):
        entries.setdefault(str(other), PromptLogprob(_clamp(logprob), rank, tokenizer.token_text(other)))
    return entries


def join_logprobs(parts: Iterable[CompletionLogprobs]) -> CompletionLogprobs:
    """The arrays of all parts, one after the other."""
    joined = CompletionLogprobs([], [], [], [])
    for part in parts:
        joined.text_offset.extend(part.text_offset)
        joined.token_logprobs.extend(part.token_logprobs)
        joined.tokens.extend(part.tokens)
        joined.top_logprobs.extend(part.top_logprobs)
    return joined


def arrays_in_pieces(parts: Iterable[CompletionLogprobs]) -> Iterator[bytes]:
    """The JSON of `join_logprobs(parts)`, of which no piece takes long. Empty pieces come while parts are made."""
    arrays: dict[str, list[bytes]] = {name: [] for name in CompletionLogprobs.__struct_fields__}
    for part in parts:
        for name, pieces in arrays.items():
            pieces.append(encode(getattr(part, name))[1:-1])
        yield b""
    opening = b"{"
    for name, pieces in arrays.items():
        yield opening + encode(name) + b":["
        for number, piece in enumerate(pieces):
            yield b"," + piece if number else piece
        opening = b"],"
    yield b"]}"


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """The rows, `BATCH` at a time."""
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch
