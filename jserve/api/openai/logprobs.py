"""The engine's logprobs in the two shapes of the OpenAI API.

Both clamp at -9999, since JSON has no minus infinity. The best alternatives are the true ones, best first,
whether or not the sampled token is among them.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence

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

_FLOOR = -9999.0


class LogprobsFormatter:
    """Formats the positions of one choice, in order; keeps the text offset that completions need.

    `chosen` are the tokens of `logprob_token_ids`, which are shown instead of the best.
    """

    __slots__ = ("_as_ids", "_chosen", "_decoder", "_offset", "_shown_tokens", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, as_token_ids: bool = False, chosen: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_token_ids
        self._chosen = chosen
        self._offset = 0
        self._shown_tokens: dict[int, tuple[str, list[int]]] = {}
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def chat(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """`logprobs` of `token_ids`, which have the same length."""
        content = []
        for token, position in zip(token_ids, logprobs, strict=True):
            top = []
            for other, logprob in self._alternatives(position):
                text, raw = self._shown(other)
                top.append(TopLogprob(text, _clamp(logprob), raw))
            text, raw = self._shown(token)
            content.append(TokenLogprob(text, _clamp(position.logprob), raw, top))
        return ChatLogprobs(content)

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """The same as parallel arrays. Of alternatives that decode to the same text, the best is kept.

        A token's offset is where its first character, or the one that it is part of, begins in the text.
        """
        found = CompletionLogprobs([], [], [], [])
        for token, position in zip(token_ids, logprobs, strict=True):
            self._append(found, token, position, self._alternatives(position))
            self._advance(self._tokenizer.token_bytes(token))
        return found

    def echo(
        self, text: str, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], count: int
    ) -> CompletionLogprobs:
        """A prompt, before its completion: `text` as it is echoed, and the logprobs from its second token on, of
        which the best `count` are shown. The first has none.
        """
        found = CompletionLogprobs([], [], [], [])
        for token, position in zip(token_ids, [None, *logprobs], strict=True):
            best = [] if position is None else zip(position.top_ids[:count], position.top_logprobs, strict=False)
            self._append(found, token, position, best)
            is_shown = not self._tokenizer.is_special(token) or text.startswith(
                self._tokenizer.token_text(token), self._offset
            )
            if is_shown:  # a beginning-of-sequence token that the tokenizer put there is not
                self._advance(self._tokenizer.token_bytes(token))
        self._offset = len(text)
        self._decoder.reset()
        return found

    def _append(
        self,
        found: CompletionLogprobs,
        token: int,
        position: TokenLogprobs | None,
        alternatives: Iterable[tuple[int, float]],
    ) -> None:
        text = self._text(token)
        found.tokens.append(text)
        found.text_offset.append(self._offset)
        found.token_logprobs.append(None if position is None else _clamp(position.logprob))
        if position is None:
            found.top_logprobs.append(None)
            return
        best: dict[str, float] = {}
        for other, logprob in alternatives:
            best.setdefault(self._text(other), _clamp(logprob))
        best.setdefault(text, _clamp(position.logprob))
        found.top_logprobs.append(best)

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
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], count: int
) -> PromptLogprobs:
    """The field `prompt_logprobs`: for each token of a prompt itself, and the `count` best in its place."""
    found: PromptLogprobs = [None]
    for token, position in zip(token_ids[1:], logprobs, strict=True):
        entries = {str(token): PromptLogprob(_clamp(position.logprob), position.rank, tokenizer.token_text(token))}
        best = zip(position.top_ids[:count], position.top_logprobs, strict=False)
        for rank, (other, logprob) in enumerate(best, 1):
            entry = PromptLogprob(_clamp(logprob), rank, tokenizer.token_text(other))
            entries.setdefault(str(other), entry)
        found.append(entries)
    return found


def join_logprobs(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """The arrays of all parts, one after the other."""
    return CompletionLogprobs(
        [offset for part in parts for offset in part.text_offset],
        [logprob for part in parts for logprob in part.token_logprobs],
        [token for part in parts for token in part.tokens],
        [top for part in parts for top in part.top_logprobs],
    )
