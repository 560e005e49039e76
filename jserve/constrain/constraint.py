"""What changes from token to token for one request: bad words of several tokens, and a budget of reasoning."""

from collections import defaultdict
from typing import Protocol

from jserve.constrain.bits import Bits, remove
from jserve.protocol import ThinkingBudget


class ConstraintError(Exception):
    """No further token can be chosen for a request. The message is fit for its sender."""


class Constraint(Protocol):
    """Follows the output of one request and says what may not come next."""

    def advance(self, token: int) -> None:
        """Take in the next token of the output."""

    def restrict(self, row: Bits) -> None:
        """Take out of `row`, u32[ceil(V / 32)], what must not come next."""


class BadWords:
    """Token sequences of two tokens or more: the last is forbidden where the output ends with the others."""

    def __init__(self, words: tuple[tuple[int, ...], ...]) -> None:
        self._words: dict[int, list[tuple[int, ...]]] = defaultdict(list)  # by the token before the last
        for word in words:
            if len(word) > 1:
                self._words[word[-2]].append(word)
        self._longest = max(map(len, words), default=0)
        self._tail: list[int] = []

    def advance(self, token: int) -> None:
        self._tail.append(token)
        if len(self._tail) >= 2 * self._longest:
            self._tail = self._tail[-self._longest :]

    def restrict(self, row: Bits) -> None:
        tail = self._tail
        if not tail:
            return
        for word in self._words.get(tail[-1], ()):
            if tuple(tail[1 - len(word) :]) == word[:-1]:
                remove(row, word[-1])


class BudgetCount:
    """Counts the tokens of reasoning, over all its stretches together, and says when its end is due.

    The tokens of a complete `end` are no reasoning. Those of an end that has only begun count, and are not
    asked for again: `due` is the rest of it.
    """

    def __init__(self, budget: ThinkingBudget) -> None:
        self._budget = budget
        self._is_inside = budget.is_open
        self._used = 0
        self._tail: list[int] = []  # of the present stretch, inside or outside

    def advance(self, token: int) -> None:
        """Take in the next token of the output."""
        begin, end = self._budget.begin, self._budget.end
        self._tail.append(token)
        self._used += self._is_inside
        marker = end if self._is_inside else begin
        if marker and tuple(self._tail[-len(marker) :]) == marker:
            if self._is_inside:
                self._used -= len(end)
            self._is_inside = not self._is_inside
            self._tail.clear()
        elif len(self._tail) > 2 * len(marker):
            self._tail = self._tail[-len(marker) :]

    def due(self) -> tuple[int, ...]:
        """The tokens that must come now, in this order, or none."""
        end = self._budget.end
        if not self._is_inside or self._used < self._budget.max_tokens:
            return ()
        begun = next(
            size for size in range(len(end), -1, -1) if tuple(self._tail[len(self._tail) - size :]) == end[:size]
        )
        return end[begun:]
