"""The queue in front of the device: by priority, then by order of arrival. Deletion is lazy."""

import heapq

from jserve.schedule.sequence import Sequence, Status

_COMPACT_ABOVE = 64
"""Dead entries that are never worth a rebuild."""


class WaitingQueue:
    """Waiting sequences by rank. A preempted one returns to its old rank, so in front of its class."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._num_dead = 0

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))

    def first(self) -> Sequence | None:
        """The sequence to admit next, left in the queue."""
        heap = self._heap
        while heap and heap[0][1].status is not Status.WAITING:
            heapq.heappop(heap)
            self._num_dead -= 1
        return heap[0][1] if heap else None

    def pop(self) -> None:
        """Take out what `first` returned."""
        heapq.heappop(self._heap)

    def forget_one(self) -> None:
        """Note that a queued sequence has just finished: it is dropped when it surfaces.

        A rebuild when most entries are dead keeps memory bounded at a constant cost per deletion.
        """
        self._num_dead += 1
        if self._num_dead > _COMPACT_ABOVE and 2 * self._num_dead > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapq.heapify(self._heap)
            self._num_dead = 0
