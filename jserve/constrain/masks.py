"""The masks of one step, for all of its constrained rows at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from jserve.constrain.bits import all_tokens, num_words
from jserve.constrain.constraint import ConstraintError
from jserve.constrain.row import RowConstraint

SLOW_S = 0.2
"""A usual grammar takes 0.01 to 1 ms for a token."""


@dataclass(frozen=True, slots=True)
class MaskRow:
    """A row of a step that samples under a constraint. `new_tokens` of the output it has not seen."""

    row: int
    constraint: RowConstraint
    new_tokens: Sequence[int]


class MaskMaker:
    """Computes masks without the GIL, on several threads where there are several grammars.

    A very ambiguous grammar takes longer with each token, up to half a second within llguidance's limits, and
    the whole batch with it. After a batch of more than `slow_s` seconds the grammars take turns, and one that
    by itself takes as much processor time is given up.
    """

    def __init__(
        self, vocab_size: int, grammar_vocab_size: Callable[[], int] | None = None, *, slow_s: float = SLOW_S
    ) -> None:
        """`grammar_vocab_size` says how many tokens matchers know: as many as the model has rows for, or more."""
        self._vocab_size = vocab_size
        self._grammar_vocab_size = grammar_vocab_size or (lambda: vocab_size)
        self._slow_s = slow_s
        self._is_suspicious = False

    def fill(self, rows: list[MaskRow], count: int) -> tuple[NDArray[np.int32], dict[int, str]]:
        """i32[count, ceil(V / 32)] with the bits of what each row may choose, all for other rows; and by row,
        why one can choose nothing any more (its bits are then all set: what it gets is not for anybody).
        """
        masks = all_tokens(self._vocab_size, count)
        signed = masks.view(np.int32)
        failed: dict[int, str] = {}
        for entry in rows:
            try:
                for token in entry.new_tokens:
                    entry.constraint.advance(token)
            except ConstraintError as error:
                failed[entry.row] = str(error)
        left = [entry for entry in rows if entry.row not in failed]
        failed |= self._fill_grammars(left, signed)
        for entry in left:
            if entry.row in failed:
                masks[entry.row] = 0xFFFFFFFF
                continue
            try:
                entry.constraint.restrict(masks[entry.row])
            except ConstraintError as error:
                failed[entry.row] = str(error)
                masks[entry.row] = 0xFFFFFFFF
        return signed, failed

    def _fill_grammars(self, rows: list[MaskRow], masks: NDArray[np.int32]) -> dict[int, str]:
        """Why rows fail, by row."""
        matchers = [(entry.constraint.matcher, entry.row) for entry in rows if entry.constraint.matcher is not None]
        if matchers and (words := num_words(self._grammar_vocab_size())) > masks.shape[1]:
            wide = np.empty((len(masks), words), np.int32)  # a matcher fills all of its bits or refuses
            failed = self._fill(matchers, wide)
            of_matchers = [row for _, row in matchers]
            masks[of_matchers] = wide[of_matchers, : masks.shape[1]]
            return failed
        return self._fill(matchers, masks)

    def _fill(self, matchers: list[tuple[LLMatcher, int]], masks: NDArray[np.int32]) -> dict[int, str]:
        failed: dict[int, str] = {}
        start = time.perf_counter()
        if len(matchers) > 1 and not self._is_suspicious:
            fill_next_token_bitmask_par(self._executor, matchers, masks)
        else:
            for matcher, row in matchers:
                used = time.thread_time()
                fill_next_token_bitmask(matcher, masks, row)
                used = time.thread_time() - used
                if used > self._slow_s:
                    failed[row] = (
                        f"the grammar took {1000 * used:.3g} ms for one token, and {1000 * self._slow_s:.3g} are "
                        "allowed; make it less ambiguous"
                    )
        self._is_suspicious = time.perf_counter() - start > self._slow_s
        return failed

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()
