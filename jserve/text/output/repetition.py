"""Output that goes round in circles: a pattern of tokens that comes again and again at its end."""

import numpy as np

from jserve.protocol import RepetitionDetection


class RepetitionDetector:
    """Sees whether the newest tokens are one pattern of some size, `min_count` times in a row.

    For each size p it counts for how many tokens in a row each has equalled the one p before it; a pattern of p
    tokens stands there n times once that count is p * (n - 1).
    """

    def __init__(self, limits: RepetitionDetection) -> None:
        self._first = max(limits.min_pattern_size, 1)
        size = limits.max_pattern_size
        self._runs = np.zeros(size, np.int64)  # by the size of the pattern less one
        self._needed = np.arange(1, size + 1) * (limits.min_count - 1)
        self._newest = np.full(size, -1, np.int64)  # the newest token first

    def push(self, token: int) -> bool:
        """Take in a token. Returns whether the tokens so far end with a repetition."""
        self._runs = np.where(self._newest == token, self._runs + 1, 0)
        self._newest = np.concatenate(([token], self._newest[:-1]))
        return bool((self._runs >= self._needed)[self._first - 1 :].any())
