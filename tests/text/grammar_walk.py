"""Random walks through a grammar: what a model of very high temperature would write, with a real tokenizer."""

import random
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer


@dataclass(frozen=True)
class Walk:
    """`text` is complete where `is_finished`: the grammar was satisfied and the end token was drawn."""

    text: str
    num_tokens: int
    is_finished: bool


class Walker:
    """Draws uniformly from the tokens that a grammar allows."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._sizes = np.array([len(tokenizer.decode_bytes([t])) for t in range(tokenizer.vocab_size)])
        closing = [t for t in range(tokenizer.vocab_size) if tokenizer.decode_bytes([t]) in (b'"', b"}", b"]", b'"}')]
        self._closing = np.zeros(tokenizer.vocab_size, bool)
        self._closing[closing] = True

    def walk(self, grammar: str, seed: int, *, free_tokens: int = 40, max_tokens: int = 1500) -> Walk:
        """After `free_tokens` uniform draws, strings, arrays and objects are closed wherever they may be.

        That ends what the grammar leaves free; what it bounds itself (numbers, whitespace) it has to end alone.
        """
        draw = random.Random(seed)
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            allowed = self._allowed(matcher)
            assert allowed.any(), f"a dead end after {self.tokenizer.decode_str(tokens)!r}"
            if len(tokens) >= free_tokens:
                allowed = self._hasten(allowed)
            token = int(draw.choice(np.flatnonzero(allowed)))
            if token == self.tokenizer.eos_token:
                return Walk(self.tokenizer.decode_bytes(tokens).decode(), len(tokens), True)
            assert matcher.consume_token(token), matcher.get_error()
            tokens.append(token)
        return Walk(self.tokenizer.decode_bytes(tokens).decode(errors="replace"), len(tokens), False)

    def _allowed(self, matcher: LLMatcher) -> np.ndarray:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        assert not matcher.is_error(), matcher.get_error()
        return np.unpackbits(bits, bitorder="little")[: self.tokenizer.vocab_size].astype(bool)

    def _hasten(self, allowed: np.ndarray) -> np.ndarray:
        if allowed[self.tokenizer.eos_token]:
            only = np.zeros_like(allowed)
            only[self.tokenizer.eos_token] = True
            return only
        closing = allowed & self._closing
        return closing if closing.any() else allowed
