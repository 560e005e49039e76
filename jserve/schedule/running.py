"""The sequences that run: their order, their slots, and the pages that they may soon need."""

import heapq
from bisect import insort
from operator import attrgetter

from jserve.schedule.cache import Cache
from jserve.schedule.groups import PageTable
from jserve.schedule.plan import PageRun
from jserve.schedule.sequence import Sequence, Status

_by_rank = attrgetter("rank")


class RunningSequences:
    """At most `max_num_seqs` sequences, in slots 0 to max_num_seqs - 1, with their pages of `cache`."""

    def __init__(self, cache: Cache, max_num_seqs: int) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self.by_rank: list[Sequence] = []
        self.free_slots = list(range(max_num_seqs))
        """A heap: low slots are taken first, so that few rows stay in use."""
        self._num_growing = 0  # those that may need another page

    def __len__(self) -> int:
        return len(self.by_rank)

    @property
    def num_spare(self) -> int:
        """Available pages that no running sequence may soon ask for."""
        return self._cache.pool.num_available - self._cache.num_groups * self._num_growing

    def enter(self, sequence: Sequence, tables: list[PageTable], num_pages: int) -> None:
        """Give a sequence a slot, and pages as `Cache.admit` does."""
        self._cache.admit(sequence, tables, num_pages)
        sequence.slot = heapq.heappop(self.free_slots)
        sequence.status = Status.RUNNING
        insort(self.by_rank, sequence, key=_by_rank)
        self._num_growing += sequence.may_grow

    def leave(self, sequence: Sequence) -> None:
        """Free what a sequence holds. The caller sets its new status."""
        self.by_rank.remove(sequence)
        self._num_growing -= sequence.may_grow
        self._cache.free(sequence)
        heapq.heappush(self.free_slots, sequence.slot)
        sequence.slot = -1

    def grow(self, sequence: Sequence) -> tuple[PageRun, ...]:
        """Take the pages that the next token of a sequence lacks."""
        did_grow = sequence.may_grow
        runs = self._cache.grow(sequence)
        self._num_growing -= did_grow and not sequence.may_grow
        return runs

    def check(self) -> None:
        """Raise AssertionError naming the first broken invariant."""
        self._cache.check(self.by_rank)
        ranks = [sequence.rank for sequence in self.by_rank]
        assert ranks == sorted(ranks), f"running sequences are out of order: {ranks}"
        slots = [sequence.slot for sequence in self.by_rank]
        assert sorted(slots + self.free_slots) == list(range(self._max_num_seqs)), f"slots are lost: {slots}"
        growing = sum(sequence.may_grow for sequence in self.by_rank)
        assert growing == self._num_growing, f"{growing} sequences may grow but {self._num_growing} are counted"
