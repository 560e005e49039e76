"""How many tokens a step takes, where the device pads every step to one of a few sizes."""

from collections.abc import Sequence


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
