"""The masks of one step, for all of its constrained rows at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from jserve.constrain.bits import all_tokens
from jserve.constrain.constraint import ConstraintError
from jserve.constrain.row import RowConstraint


@dataclass(frozen=True, slots=True)
class MaskRow:
    """A row of a step that samples under a constraint. `new_tokens` of the output it has not seen."""

    row: int
    constraint: RowConstraint
    new_tokens: Sequence[int]


class MaskMaker:
    """Computes masks without the GIL, on several threads where there are several grammars."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

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
        self._fill_grammars(left, signed)
        for entry in left:
            try:
                entry.constraint.restrict(masks[entry.row])
            except ConstraintError as error:
                failed[entry.row] = str(error)
                masks[entry.row] = 0xFFFFFFFF
        return signed, failed

    def _fill_grammars(self, rows: list[MaskRow], masks: NDArray[np.int32]) -> None:
        matchers = [(entry.constraint.matcher, entry.row) for entry in rows if entry.constraint.matcher is not None]
        if len(matchers) == 1:
            fill_next_token_bitmask(matchers[0][0], masks, matchers[0][1])
        elif matchers:
            fill_next_token_bitmask_par(self._executor, matchers, masks)

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()
