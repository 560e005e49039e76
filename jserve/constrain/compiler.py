"""Grammars, from text to matchers, in threads of their own and without the GIL."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from jserve.constrain.constraint import ConstraintError
from jserve.constrain.limits import GROWTH, KEPT_BYTES, parser_limits
from jserve.constrain.row import reason_of

logger = logging.getLogger(__name__)

_THREADS = 2
_LEAST_BYTES = 1 << 16
"""Memory of the smallest grammar."""


@dataclass(frozen=True, slots=True)
class _Kept:
    matcher: "Future[LLMatcher]"
    num_bytes: int
    """The most that it may take while it runs."""


@dataclass(frozen=True, slots=True)
class GrammarTokenizer:
    """The model's tokenizer as the `tokenizers` library writes it, and its highest token id plus one."""

    json: str
    num_ids: int


class GrammarCompiler:
    """Compiles each grammar once and hands out copies. `compile` is called from one thread.

    Choices and retries of a request share one. Grammars stay compiled after their last use while all of them
    together take no more than `kept_bytes`. llguidance bounds the work (`limits.py`): an explosive grammar ends
    with an error, within milliseconds to a second.
    """

    def __init__(
        self,
        load_tokenizer: Callable[[], GrammarTokenizer],
        vocab_size: int,
        eos_token_ids: frozenset[int],
        *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`vocab_size` is what the model has rows for; its tokenizer may have more tokens."""
        self._load_tokenizer = load_tokenizer
        self.vocab_size = vocab_size
        """Tokens that matchers know, and their masks have bits for. It may grow before the first matcher is there."""
        self._eos_token_ids = sorted(eos_token_ids)
        self._kept_bytes = kept_bytes
        self._used_bytes = 0
        self._pool = ThreadPoolExecutor(_THREADS, "grammar")
        self._vocabulary: Future[LLTokenizer] | None = None
        self._compiled: OrderedDict[str, _Kept] = OrderedDict()

    def prepare(self) -> None:
        """Begin to build the vocabulary's tree, which the first grammar waits for. It holds the GIL throughout:
        0.15 s for 49,000 tokens.
        """
        if self._vocabulary is None:
            self._vocabulary = self._pool.submit(self._build_vocabulary)

    def compile(self, grammar: str, num_bytes: int = 0) -> Future[LLMatcher]:
        """The matcher at the grammar's beginning, to be copied; ConstraintError where it does not compile.

        `num_bytes` is its memory as it was measured when the grammar was tried (`SamplingParams.grammar_bytes`).
        """
        kept = self._compiled.get(grammar)
        if kept is None:
            self.prepare()
            size = GROWTH * max(num_bytes, len(grammar), _LEAST_BYTES)
            kept = self._compiled[grammar] = _Kept(self._pool.submit(self._compile, grammar), size)
            self._used_bytes += size
            while self._used_bytes > self._kept_bytes and len(self._compiled) > 1:
                self._used_bytes -= self._compiled.popitem(last=False)[1].num_bytes
        self._compiled.move_to_end(grammar)
        return kept.matcher

    def _build_vocabulary(self) -> LLTokenizer:
        if not self._eos_token_ids:
            raise ConstraintError(
                "a grammar needs an end-of-sequence token, and this model's configuration names none "
                "(eos_token_id in generation_config.json or config.json)"
            )
        try:
            tokenizer = self._load_tokenizer()
            self.vocab_size = max(self.vocab_size, tokenizer.num_ids)
            return LLTokenizer(tokenizer.json, n_vocab=self.vocab_size, eos_token=self._eos_token_ids)
        except Exception as error:
            logger.warning("grammars are refused, for want of a tokenizer: %s: %s", type(error).__name__, error)
            raise ConstraintError(
                f"grammars cannot be used with this model: its tokenizer was refused ({type(error).__name__})"
            ) from error

    def _compile(self, grammar: str) -> LLMatcher:
        assert self._vocabulary is not None
        matcher = LLMatcher(self._vocabulary.result(), grammar, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask is the slowest, and what it learns is copied with it
        if matcher.is_error():
            raise ConstraintError(f"the grammar does not compile: {reason_of(matcher)}")
        return matcher
