"""The waiting requests of one share: by order of arrival, and by length. Deletion is lazy."""

import heapq

from jserve.schedule.sequence import Sequence, Status

_COMPACT_ABOVE = 64
"""Dead entries that are never worth a rebuild."""

_Key = tuple[int, ...]


class _LazyHeap:
    """A heap whose entries die when their sequence no longer waits."""

    __slots__ = ("_entries", "_num_pushed")

    def __init__(self) -> None:
        self._entries: list[tuple[_Key, int, Sequence]] = []
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, key: _Key, sequence: Sequence) -> None:
        """Add an entry. One of the same sequence that died before may still be there."""
        self._num_pushed += 1
        heapq.heappush(self._entries, (key, self._num_pushed, sequence))

    def first(self) -> Sequence | None:
        entries = self._entries
        while entries and entries[0][2].status is not Status.WAITING:
            heapq.heappop(entries)
        return entries[0][2] if entries else None

    def compact(self) -> None:
        """Keep one entry of each sequence that waits."""
        newest = {id(entry[2]): entry for entry in self._entries if entry[2].status is Status.WAITING}
        self._entries = list(newest.values())
        heapq.heapify(self._entries)


class WaitingQueue:
    """Waiting sequences. A preempted one returns to its old rank, so in front."""

    __slots__ = ("_by_length", "_by_rank", "num_live")

    def __init__(self) -> None:
        self._by_rank = _LazyHeap()
        self._by_length = _LazyHeap()
        self.num_live = 0
        """Sequences that wait."""

    def push(self, sequence: Sequence, length: int) -> None:
        """Queue a sequence with so many tokens to compute."""
        self._by_rank.push(sequence.rank, sequence)
        self._by_length.push((length, *sequence.rank), sequence)
        self.num_live += 1

    def first(self) -> Sequence | None:
        """The sequence that arrived first, left in the queue."""
        return self._by_rank.first()

    def shortest(self) -> Sequence | None:
        """The sequence with the fewest tokens to compute, left in the queue."""
        return self._by_length.first()

    def forget_one(self) -> None:
        """Note that a sequence does not wait any more: it is dropped when it surfaces.

        A rebuild when most entries are dead keeps memory bounded at a constant cost per deletion.
        """
        self.num_live -= 1
        for heap in (self._by_rank, self._by_length):
            num_dead = len(heap) - self.num_live
            if num_dead > _COMPACT_ABOVE and 2 * num_dead > len(heap):
                heap.compact()
