"""The queue in front of an encoder: whole texts, those of about one length together.

Every text is padded to a length that follows from its own, so its neighbours in a step decide nothing but how many
they are. The first text in the order of the queue chooses the length of the next step: none waits for ever.

The order is by priority, and within it by start-time fair queueing (Goyal et al., SIGCOMM 1996): a text's virtual start
is the one of the text taken last, or where its tenant has others that wait, the end of the last of those, their tokens
later. So tenants get equal shares of the tokens, and each is served in order of arrival.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable

from jserve.protocol import Request, TokenDelta
from jserve.schedule.deltas import refusal
from jserve.schedule.limits import NO_TEXT, LengthLimits

_Rank = tuple[int, int, int]
"""Priority, virtual start in tokens, order of arrival."""
_Entry = tuple[_Rank, Request]


class TextQueue:
    """Driven from one thread. `lengths` are what texts are padded to, ascending; the last holds any text."""

    def __init__(self, *, lengths: tuple[int, ...], max_model_len: int) -> None:
        self._lengths = lengths
        self._limits = LengthLimits(max_model_len, max_model_len)
        self._waiting: dict[int, list[_Entry]] = {length: [] for length in lengths}  # heaps, by padded length
        self._open: dict[str, Request] = {}  # waiting, or in flight
        self._num_arrived = 0
        self._num_waiting = 0
        self._now = 0  # virtual start of the text taken last
        self._ends: dict[tuple[int, int], int] = {}  # virtual end of the last text, by priority and tenant

    @property
    def is_empty(self) -> bool:
        """Nobody waits for a vector."""
        return not self._open

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def num_open(self) -> int:
        """Requests that wait or are in flight."""
        return len(self._open)

    def add(self, request: Request) -> TokenDelta | None:
        """Queue a request. Returns None, or the final "error" delta of one that can never run."""
        error = self._limits.refusal(request)
        if not request.pooling:
            error = NO_TEXT
        if request.request_id in self._open:
            error = f"request id {request.request_id!r} is in use; send another one"
        if error is not None:
            return refusal(request.request_id, error)
        self._num_arrived += 1
        self._num_waiting += 1
        self._open[request.request_id] = request
        padded = self._lengths[bisect_left(self._lengths, len(request.token_ids))]
        heapq.heappush(self._waiting[padded], (self._rank(request), request))
        return None

    def _rank(self, request: Request) -> _Rank:
        key = request.priority, request.tenant
        start = max(self._now, self._ends.get(key, 0))
        self._ends[key] = start + len(request.token_ids)
        return request.priority, start, self._num_arrived

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget these requests; unknown ids are ignored."""
        aborted = {request_id for request_id in request_ids if self._open.pop(request_id, None) is not None}
        if not aborted:
            return
        for heap in self._waiting.values():
            kept = [entry for entry in heap if entry[1].request_id not in aborted]
            if len(kept) < len(heap):
                self._num_waiting -= len(heap) - len(kept)
                heap[:] = kept
                heapq.heapify(heap)

    def next_length(self) -> tuple[int, int] | None:
        """The length that the next step's texts are padded to, and how many texts of it wait; None where none waits."""
        waiting = [(heap[0][0], length) for length, heap in self._waiting.items() if heap]
        length = min(waiting)[1] if waiting else None
        return None if length is None else (length, len(self._waiting[length]))

    def take(self, length: int, count: int) -> list[Request]:
        """Take at most `count` texts of this padded length out of the queue, the first in its order first."""
        heap = self._waiting[length]
        entries = [heapq.heappop(heap) for _ in range(min(count, len(heap)))]
        self._num_waiting -= len(entries)
        if entries:
            self._now = max(self._now, entries[0][0][1])
        if not self._num_waiting:
            self._now = max(self._now, *self._ends.values())
            self._ends.clear()
        return [request for _, request in entries]

    def finish(self, request: Request) -> bool:
        """Forget a request whose vector has been read back. Returns whether somebody still waits for it."""
        is_open = self._open.get(request.request_id) is request
        if is_open:
            del self._open[request.request_id]
        return is_open
