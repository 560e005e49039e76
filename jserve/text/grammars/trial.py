"""Trying a compiled grammar out before its request is admitted: what it would meet while it runs, it meets here.

The first mask shows little: an ambiguous grammar fails, or grows, a few tokens later. Random outputs find that.
"""

import ctypes
import random
import time

import numpy as np
from llguidance import LLMatcher

from jserve.errors import RequestError

_WALKS = 3
_TOKENS = 48
"""Tokens of one walk."""
_CPU_S = 0.4
"""For all walks together; those of usual grammars take a tenth."""
SLOWEST_MASK_S = 0.1
"""For one token. `MaskMaker` gives a grammar up at twice this."""

_MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class HeapMeter:
    """The bytes that this process has allocated and not freed, where the C library tells; else always 0."""

    class _Info(ctypes.Structure):
        """glibc's `struct mallinfo2`."""

        _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO.split())

    def __init__(self) -> None:
        self._read = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33
        if self._read is not None:
            self._read.restype = HeapMeter._Info

    def live_bytes(self) -> int:
        """What is allocated now."""
        if self._read is None:
            return 0
        info = self._read()
        return int(info.uordblks + info.hblkhd)


def try_out(matcher: LLMatcher, vocab_size: int, end_ids: frozenset[int]) -> str:
    """Why the grammar cannot be run to its end, "" where no walk finds a reason.

    Raises RequestError where a mask takes too long. `matcher` stands at the beginning and stays there.
    """
    deadline = time.thread_time() + _CPU_S
    for walk in range(_WALKS):
        error = _walk(matcher.deep_copy(), random.Random(walk), vocab_size, end_ids, deadline)
        if error:
            return error
    return ""


def _walk(matcher: LLMatcher, rng: random.Random, vocab_size: int, end_ids: frozenset[int], deadline: float) -> str:
    """The compiler's message where it gives up on a random output."""
    for place in range(_TOKENS):
        began = time.thread_time()
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        used = time.thread_time() - began
        if matcher.is_error():
            return str(matcher.get_error())
        if used > SLOWEST_MASK_S:
            raise RequestError(
                f"takes {1000 * used:.0f} ms for token {place + 1} of an output and {1000 * SLOWEST_MASK_S:.0f} are "
                "allowed; make it less ambiguous"
            )
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:vocab_size])
        if not len(allowed) or time.thread_time() > deadline:
            return ""
        token = int(allowed[rng.randrange(len(allowed))])
        if token in end_ids or not matcher.consume_token(token):
            return ""
    return ""
