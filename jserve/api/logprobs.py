"""The engine's logprobs in the two shapes of the OpenAI API.

Both clamp at -9999, since JSON has no minus infinity. The best alternatives are the true ones, best first,
whether or not the sampled token is among them.
"""

from collections.abc import Sequence

from jserve.api.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from jserve.protocol import TokenLogprobs
from jserve.text.tokenizer import Tokenizer

_FLOOR = -9999.0


class LogprobsFormatter:
    """Formats the positions of one choice, in order; keeps the text offset that completions need."""

    __slots__ = ("_as_ids", "_offset", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, as_token_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_token_ids
        self._offset = 0

    def chat(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """`logprobs` of `token_ids`, which have the same length."""
        content = []
        for token, position in zip(token_ids, logprobs, strict=True):
            top = [
                TopLogprob(self._text(other), _clamp(logprob), self._bytes(other))
                for other, logprob in zip(position.top_ids, position.top_logprobs, strict=True)
            ]
            content.append(TokenLogprob(self._text(token), _clamp(position.logprob), self._bytes(token), top))
        return ChatLogprobs(content)

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """The same as parallel arrays. Of alternatives that decode to the same text, the best is kept."""
        offsets, tokens, top = [], [], []
        for token, position in zip(token_ids, logprobs, strict=True):
            text = self._text(token)
            offsets.append(self._offset)
            self._offset += len(text)
            tokens.append(text)
            best: dict[str, float] = {}
            for other, logprob in zip(position.top_ids, position.top_logprobs, strict=True):
                best.setdefault(self._text(other), _clamp(logprob))
            best.setdefault(text, _clamp(position.logprob))
            top.append(best)
        return CompletionLogprobs(offsets, [_clamp(p.logprob) for p in logprobs], tokens, top)

    def skip(self, text: str) -> None:
        """Count text that was sent without logprobs, such as an echoed prompt."""
        self._offset += len(text)

    def _text(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self._tokenizer.token_text(token)

    def _bytes(self, token: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token))


def _clamp(logprob: float) -> float:
    return max(logprob, _FLOOR)
