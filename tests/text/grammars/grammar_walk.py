"""Random walks through a grammar: what a model of very high temperature would write, with a real tokenizer."""

import random
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray


@dataclass(frozen=True)
class Walk:
    """`text` is complete where `is_finished`: the grammar was satisfied and the end token was drawn."""

    text: str
    num_tokens: int
    is_finished: bool


class Vocabulary:
    """A tokenizer, and which of its tokens end what a grammar leaves free."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        closing = [t for t in range(tokenizer.vocab_size) if tokenizer.decode_bytes([t]) in (b'"', b"}", b"]", b'"}')]
        self.closing = np.zeros(tokenizer.vocab_size, bool)
        self.closing[closing] = True

    def walk(self, grammar: str, seed: int, *, free_tokens: int = 40, max_tokens: int = 1500) -> Walk:
        """One walk from the grammar's beginning to its end."""
        walker = Walker(self, grammar, seed, free_tokens)
        while len(walker.tokens) < max_tokens:
            token = walker.draw()
            if token == self.tokenizer.eos_token:
                return Walk(self.tokenizer.decode_bytes(walker.tokens).decode(), len(walker.tokens), True)
        return Walk(self.tokenizer.decode_bytes(walker.tokens).decode(errors="replace"), len(walker.tokens), False)


class Walker:
    """Draws uniformly from the tokens that a grammar allows.

    After `free_tokens` draws, strings, arrays and objects are closed wherever they may be. That ends what the
    grammar leaves free; what it bounds itself (numbers, whitespace) it has to end alone.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str, seed: int, free_tokens: int = 40) -> None:
        self.tokens: list[int] = []
        self._vocabulary = vocabulary
        self._free_tokens = free_tokens
        self._random = random.Random(seed)
        self._matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
        assert not self._matcher.is_error(), self._matcher.get_error()

    def draw(self) -> int:
        """The next token; the end token is drawn, and not added to `tokens`."""
        tokenizer = self._vocabulary.tokenizer
        allowed = self._allowed()
        assert allowed.any(), f"a dead end after {tokenizer.decode_str(self.tokens)!r}"
        if len(self.tokens) >= self._free_tokens:
            allowed = self._hasten(allowed)
        token = int(self._random.choice(np.flatnonzero(allowed)))
        if token != tokenizer.eos_token:
            assert self._matcher.consume_token(token), self._matcher.get_error()
            self.tokens.append(token)
        return token

    def _allowed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        assert not self._matcher.is_error(), self._matcher.get_error()
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary.tokenizer.vocab_size].astype(bool)

    def _hasten(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        end = self._vocabulary.tokenizer.eos_token
        if allowed[end]:
            only = np.zeros_like(allowed)
            only[end] = True
            return only
        closing = allowed & self._vocabulary.closing
        return closing if closing.any() else allowed
