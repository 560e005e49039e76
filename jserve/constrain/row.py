"""Everything that constrains the output of one request, as one mask per token."""

from llguidance import LLMatcher

from jserve.constrain.bits import (
    Bits,
    as_mask,
    bits_of,
    fixed_tokens,
    is_empty,
    keep_only,
    remove,
    without,
)
from jserve.constrain.constraint import BadWords, BudgetCount, Constraint, ConstraintError
from jserve.protocol import SamplingParams

_LONGEST_REASON = 300


class RowConstraint:
    """The constraints of one request and how far they have followed its output.

    They hold in this order, each over what the ones before it left: the grammar; stop tokens exactly where
    the grammar may end; `allowed_token_ids` and `bad_words`; no stop token before `min_tokens` (and no end of
    sequence that the request ignores) while there is another choice; and over all of these but the grammar,
    the end of reasoning when its budget is used up. Where the grammar does not take that end, it is tried
    again with the next token: what is generated is a sentence of the grammar in any case.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eos_ids: frozenset[int],
        matcher: LLMatcher | None = None,
    ) -> None:
        """`eos_ids` are the model's; `matcher` is the request's own, at the beginning of its grammar."""
        self.matcher = matcher
        self.num_seen = 0
        self._vocab_size = vocab_size
        self._min_tokens = params.min_tokens
        self._fixed = fixed_tokens(params, vocab_size)
        own = frozenset(params.stop_token_ids)
        ends = own if params.ignore_eos and matcher is None else eos_ids | own
        self._stops = bits_of(ends, vocab_size)
        self._ignored = bits_of(eos_ids if params.ignore_eos and matcher is not None else (), vocab_size)
        self._others: list[Constraint] = [BadWords(params.bad_words)] if params.bad_words else []
        self._budget = BudgetCount(params.thinking_budget) if params.thinking_budget is not None else None

    def advance(self, token: int) -> None:
        """Take in the next token of the output. Raises ConstraintError where the grammar does not have it."""
        self.num_seen += 1
        for constraint in self._others:
            constraint.advance(token)
        if self._budget is not None:
            self._budget.advance(token)
        if self.matcher is not None and not self.matcher.consume_token(token):
            raise ConstraintError(f"the grammar failed: {reason_of(self.matcher)}")

    def restrict(self, row: Bits) -> None:
        """Turn the grammar's row (every token where there is none) into what may come next.

        Raises ConstraintError where that is nothing.
        """
        size = self._vocab_size
        if self.matcher is not None:
            if self.matcher.is_error():
                raise ConstraintError(f"the grammar failed: {reason_of(self.matcher)}")
            self._place_stops(row, self.matcher)
        forced = self._forced_token()
        if forced is not None:
            keep_only(row, forced)
            return
        row &= self._fixed
        for constraint in self._others:
            constraint.restrict(row)
        if self.num_seen < self._min_tokens:
            row[:] = without(row, self._stops, size)
        row[:] = without(row, self._ignored, size)
        if is_empty(row, size):
            raise ConstraintError(
                f"after {self.num_seen} tokens no token is left that the grammar, allowed_token_ids and bad_words "
                "of the request all allow; relax one of them"
            )

    def _place_stops(self, row: Bits, matcher: LLMatcher) -> None:
        if matcher.is_accepting():
            row |= self._stops
            return
        allowed = row & self._stops
        if allowed.any():
            for token in as_mask(allowed, self._vocab_size).nonzero()[0].tolist():
                ending = matcher.deep_copy()
                if not (ending.consume_token(token) and ending.is_accepting()):
                    remove(row, token)

    def _forced_token(self) -> int | None:
        due = self._budget.due() if self._budget is not None else ()
        if not due:
            return None
        if self.matcher is not None and self.matcher.validate_tokens(list(due)) < len(due):
            return None
        return due[0]


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher is in error, on one line of bounded length."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith("<"))
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"
