"""How many tokens a step takes, where the device pads every step to one of a few sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Padding:
    """What steps cost beyond their tokens."""

    sizes: Callable[[int], tuple[int, ...]]
    """The tokens, ascending, to which steps of so many rows are padded."""
    overhead: int
    """How many tokens cost as much as a further step."""

    def excess(self, num_tokens: int, num_rows: int, num_decodes: int) -> int:
        """How many of a step's tokens would cost more in padding than in the next step."""
        return num_tokens - filled(num_tokens, num_decodes, self.sizes(num_rows), self.overhead)


def filled(tokens: int, decodes: int, sizes: Sequence[int], overhead: int) -> int:
    """How many of `tokens` to compute now and not one step later: all, or as many as fill a size.

    `sizes` are what steps are padded to, ascending. A second step computes what is left beside the next tokens
    of the `decodes`, and costs as much as `overhead` tokens more; it is made where the padding that it avoids
    costs more than that.
    """
    lower = max((size for size in sizes if size <= tokens), default=tokens)
    if lower == tokens:
        return tokens
    saved = _padded(tokens, sizes) - lower - _padded(tokens - lower + decodes, sizes)
    return lower if saved > overhead else tokens


def _padded(tokens: int, sizes: Sequence[int]) -> int:
    return next((size for size in sizes if size >= tokens), tokens)
