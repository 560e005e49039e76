"""The sequences that run: their order, their slots, the pages that they may soon need, and who gives way to whom."""

import heapq
import time
from bisect import insort
from collections import Counter
from operator import attrgetter

from jserve.schedule.cache import Cache
from jserve.schedule.groups import PageTable
from jserve.schedule.plan import PageRun
from jserve.schedule.sequence import Sequence, Status

_by_rank = attrgetter("rank")


class RunningSequences:
    """At most `max_running` sequences, in slots 0 to max_num_seqs - 1, with their pages of `cache`."""

    def __init__(self, cache: Cache, max_num_seqs: int, max_running: int) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_running = min(max_num_seqs, max_running)
        self.by_rank: list[Sequence] = []
        self._free_slots = list(range(max_num_seqs))  # a heap: low slots first, so that few rows stay in use
        self._num_growing = 0  # those that may need another page
        self._num_running: dict[int, int] = {}  # by tenant
        self.prefix_queries = 0
        """Prompt tokens of those that ever ran and may share a prefix."""
        self.prefix_hits = 0
        """Those of them that were in the prefix cache."""

    def __len__(self) -> int:
        return len(self.by_rank)

    @property
    def num_free(self) -> int:
        """How many more sequences may run."""
        return self._max_running - len(self.by_rank)

    @property
    def num_spare(self) -> int:
        """Available pages that no running sequence may soon ask for."""
        return self._cache.pool.num_available - self._cache.num_groups * self._num_growing

    def count_cached(self, sequence: Sequence) -> int:
        """Leading tokens of a waiting sequence that it would not have to compute now."""
        return self._find(sequence)[0].end * self._cache.page_size

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a slot and its pages, unless running ones would soon miss them. There is a slot."""
        share, num_spare = sequence.share, self.num_spare
        # Until there are as many spare pages as it lacked, its prefix is not looked up again, so waiting costs the
        # same however long a prompt is.
        if sequence is share.starved and num_spare < share.starved_of:
            return False
        tables = self._find(sequence)
        needed = self._count_needed(sequence, tables)
        if num_spare < needed:
            share.starved, share.starved_of = sequence, needed
            return False
        if sequence is share.starved:
            share.starved = None
        self._enter(sequence, tables)
        return True

    def leave(self, sequence: Sequence) -> None:
        """Free what a sequence holds. The caller sets its new status."""
        share = sequence.share
        share.charge(sequence)
        share.owe(sequence, 0)
        self.by_rank.remove(sequence)
        self._num_growing -= sequence.may_grow
        self._cache.free(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        self._num_running[share.tenant] -= 1
        if not self._num_running[share.tenant]:
            del self._num_running[share.tenant]

    def grow(self, sequence: Sequence) -> tuple[PageRun, ...]:
        """Take the pages that the next token of a sequence lacks."""
        did_grow = sequence.may_grow
        runs = self._cache.grow(sequence)
        self._num_growing -= did_grow and not sequence.may_grow
        return runs

    def least_important(self, place: int) -> Sequence:
        """The sequence to preempt when no page is left, among those from this place in the order of ranks on.

        It has the lowest priority, there the tenant that holds most pages, and is that tenant's newest.
        """
        last = self.by_rank[-1]
        if len(self._num_running) == 1:
            return last
        held = self._count_pages()
        candidates = [sequence for sequence in self.by_rank[place:] if sequence.rank[0] == last.rank[0]]
        return max(candidates, key=lambda sequence: (held[sequence.share.tenant], sequence.rank))

    def in_the_way(self, sequence: Sequence) -> Sequence | None:
        """The sequence to preempt for a waiting one that lacks a slot or pages, or None.

        It is the newest of the tenant that holds most of them, if that tenant has been served more and holds more even
        then. It has got on by a token since it was admitted: two that preempt each other in turn both reach their end.
        """
        tenant = sequence.share.tenant
        if self.num_free <= 0:
            return self._newest_of_largest(sequence, Counter(self._num_running), self._num_running.get(tenant, 0) + 1)
        if self.num_spare >= (self._cache.pool.pages_for(len(sequence.token_ids)) + 1) * self._cache.num_groups:
            return None
        needed = self._count_needed(sequence, self._find(sequence))
        if self.num_spare >= needed:
            return None
        held = self._count_pages()
        return self._newest_of_largest(sequence, held, held[tenant] + needed)

    def _newest_of_largest(self, sequence: Sequence, held: Counter[int], enough: int) -> Sequence | None:
        tenant = max(held, key=lambda tenant: held[tenant], default=None)
        if tenant is None or tenant == sequence.share.tenant or held[tenant] <= enough:
            return None
        for other in reversed(self.by_rank):
            if other.rank[0] < sequence.rank[0]:
                break
            if (
                other.share.tenant == tenant
                and other.num_computed > other.num_resumed
                and other.share.order > sequence.share.order
            ):
                return other
        return None

    def _count_pages(self) -> Counter[int]:
        """Pages held, by tenant; one that several share counts for each."""
        held: Counter[int] = Counter()
        for sequence in self.by_rank:
            held[sequence.share.tenant] += sum(len(table.pages) for table in sequence.tables)
        return held

    def _find(self, sequence: Sequence) -> list[PageTable]:
        """The pages that hold a prefix of the sequence. Its last token is always computed: its logits give the next."""
        cache = self._cache
        limit = (len(sequence.token_ids) - 1) // cache.page_size if cache.shares else 0
        if sequence.next_read < sequence.end_read:
            limit = min(limit, sequence.next_read // cache.page_size)  # what is to be read must be computed
        return cache.find(sequence.chain, limit)

    def _count_needed(self, sequence: Sequence, tables: list[PageTable]) -> int:
        num_pages = self._cache.pool.pages_for(len(sequence.token_ids))
        return self._cache.count_missing(tables, num_pages, grows=num_pages < sequence.max_pages)

    def _enter(self, sequence: Sequence, tables: list[PageTable]) -> None:
        share = sequence.share
        share.waiting.forget_one()
        self._cache.admit(sequence, tables, self._cache.pool.pages_for(len(sequence.token_ids)))
        sequence.slot = heapq.heappop(self._free_slots)
        self._cache.enter_slot(sequence)
        sequence.status = Status.RUNNING
        insort(self.by_rank, sequence, key=_by_rank)
        self._num_growing += sequence.may_grow
        self._num_running[share.tenant] = self._num_running.get(share.tenant, 0) + 1
        sequence.num_charged = sequence.num_resumed = max(sequence.num_charged, sequence.num_computed)
        share.owe(sequence, sequence.num_uncomputed)
        if not sequence.scheduled_at:
            self._record_first(sequence)

    def _record_first(self, sequence: Sequence) -> None:
        sequence.scheduled_at = time.time()
        sequence.num_cached = sequence.num_computed
        if self._cache.shares and (sequence.next_read or not sequence.end_read):
            self.prefix_queries += sequence.num_prompt
            self.prefix_hits += sequence.num_cached

    def check(self) -> None:
        """Raise AssertionError naming the first broken invariant."""
        self._cache.check(self.by_rank)
        ranks = [sequence.rank for sequence in self.by_rank]
        assert ranks == sorted(ranks), f"running sequences are out of order: {ranks}"
        assert len(ranks) <= self._max_running, f"{len(ranks)} sequences run where {self._max_running} may"
        slots = [sequence.slot for sequence in self.by_rank]
        assert sorted(slots + self._free_slots) == list(range(self._max_num_seqs)), f"slots are lost: {slots}"
        growing = sum(sequence.may_grow for sequence in self.by_rank)
        assert growing == self._num_growing, f"{growing} sequences may grow but {self._num_growing} are counted"
        tenants = Counter(sequence.share.tenant for sequence in self.by_rank)
        assert tenants == self._num_running, f"{dict(tenants)} run by tenant but {self._num_running} are counted"
