"""Many texts as one regular expression that shares their beginnings, as the branches of a tree do."""

import re
from collections.abc import Sequence

_DEEPEST = 40
"""Groups in each other. Below, texts stand one beside the other: the compiler does not nest without end."""
_SIGNS = re.compile(r"[\\/.+*?()|\[\]{}^$&~#-]")
_LINE_ENDS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def prefix_tree(texts: Sequence[str]) -> str:
    """A regular expression, as it stands between slashes in Lark, that matches exactly `texts`.

    They are sorted, different and not empty.
    """
    return _branch(texts, 0, len(texts), 0, 0)


def _branch(texts: Sequence[str], low: int, high: int, start: int, depth: int) -> str:
    """What follows the first `start` characters, which texts[low:high] have in common."""
    is_complete = len(texts[low]) == start  # The shortest comes first.
    first = low + is_complete
    if depth == _DEEPEST:
        ways = [_spelled(text[start:]) for text in texts[first:high]]
    else:
        ways = []
        while first < high:
            after = _end_of_branch(texts, first, high, start)
            ways.append(_way(texts, first, after, start, depth))
            first = after
    return f"(?:{'|'.join(ways)}){'?' if is_complete else ''}"


def _way(texts: Sequence[str], low: int, high: int, start: int, depth: int) -> str:
    if high - low == 1:
        return _spelled(texts[low][start:])
    one, other = texts[low], texts[high - 1]
    end = start + 1
    while end < min(len(one), len(other)) and one[end] == other[end]:
        end += 1
    return _spelled(one[start:end]) + _branch(texts, low, high, end, depth + 1)


def _end_of_branch(texts: Sequence[str], low: int, high: int, start: int) -> int:
    """The end of the run of texts that go on with the same character as texts[low]."""
    sign, end = texts[low][start], low + 1
    while end < high and texts[end][start] == sign:
        end += 1
    return end


def _spelled(text: str) -> str:
    escaped = _SIGNS.sub(lambda match: "\\" + match[0], text)
    return "".join(_LINE_ENDS.get(character, character) for character in escaped)
