"""The pages of running sequences in all cache groups: taken, registered for others, shared again and freed.

Groups that see everything take a prompt's pages at admission. Groups with a window take them chunk by chunk, and free
those that no later token sees. Other prompts and growing answers may take the pages that such a prompt needs next. Then
its chunks get shorter, down to none while others run; where all wait for each other's pages, the scheduler preempts.
"""

from collections.abc import Iterable

from jserve.schedule.groups import PageTable, Windows, first_visible_page, window_pages
from jserve.schedule.plan import PageRun
from jserve.schedule.pool import PagePool
from jserve.schedule.prefix import DigestChain
from jserve.schedule.sequence import Sequence
from jserve.schedule.snapshots import Snapshots


class Cache:
    """`num_pages` pages of `page_size` (B) tokens for groups with these `windows`; chunks are of up to `max_chunk`
    tokens.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        windows: Windows,
        max_chunk: int,
        *,
        shares: bool,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.page_size = page_size
        self.num_groups = len(windows)
        self.shares = shares
        """Whether full pages are registered for others."""
        self.snapshots = snapshots
        """Copies of states; None where layers keep none."""
        self._windows = windows
        self._chunk_pages = self.pool.pages_for(max_chunk)
        # It tells the digests of a group's pages from those of the other groups.
        self._tags = [bytes([group] * (group > 0)) for group in range(len(windows))]
        self._windowed = [group for group, window in enumerate(windows) if window is not None]
        self.has_windows = bool(self._windowed)
        # Most models have one group that sees everything: for those, what every request or page goes through is short.
        self._is_plain = windows == (None,)
        self._passed: list[Sequence] = []

    def find(self, chain: DigestChain, limit: int) -> list[PageTable]:
        """The longest prefix of at most `limit` pages with which a sequence can go on: groups that see everything
        have all of it, those with a window what its next token sees, and there is a copy of the state at its end where
        layers keep one. References nothing.
        """
        tables = self._find_pages(chain, limit)
        if self.snapshots is not None:
            while (length := self.snapshots.longest(chain, tables[0].end)) < tables[0].end:
                tables = self._find_pages(chain, length)
        return tables

    def _find_pages(self, chain: DigestChain, limit: int) -> list[PageTable]:
        if self._is_plain:
            return [PageTable(0, self.pool.match(chain, limit))]
        length = limit
        tables = [PageTable(0, []) for _ in self._windows]
        for table, tag, window in zip(tables, self._tags, self._windows, strict=True):
            if window is None:
                table.pages = self.pool.match(chain, length, tag)
                length = len(table.pages)
        if self.has_windows:
            self._find_windows(tables, chain, length)
        return tables

    def _find_windows(self, tables: list[PageTable], chain: DigestChain, length: int) -> None:
        """Cut `tables` to the longest prefix of at most `length` pages for which there are those of the windows."""
        find, place = self.pool.find, length
        firsts = self._first_pages(length)
        while place > min(firsts[group] for group in self._windowed):
            place -= 1
            digest = chain.digest(place)
            if any(place >= firsts[group] and find(digest + self._tags[group]) is None for group in self._windowed):
                length = place
                firsts = self._first_pages(length)
        for table, tag, first in zip(tables, self._tags, firsts, strict=True):
            pages = [find(chain.digest(place) + tag) for place in range(first, length)]
            table.first, table.pages = first, [page for page in pages if page is not None]

    def _first_pages(self, length: int) -> list[int]:
        """The first page that the token after so many pages sees, in each group."""
        return [first_visible_page(length * self.page_size, window, self.page_size) for window in self._windows]

    def count_missing(self, tables: list[PageTable], num_pages: int, *, grows: bool) -> int:
        """Pages that a sequence of `num_pages` takes from the rest while its prompt is computed, and one in each group
        if it `grows`. Never more than there are, so that a sequence alone is always admitted.
        """
        if self._is_plain:
            return num_pages - self.pool.count_used(tables[0].pages) + grows
        missing = self.num_groups * grows
        for table, window in zip(tables, self._windows, strict=True):
            taken = num_pages - table.first
            if window is not None:
                taken = min(taken, window_pages(window, self.page_size) + self._chunk_pages)
            missing += taken - self.pool.count_used(table.pages)
        return min(missing, self.pool.num_pages)

    def admit(self, sequence: Sequence, tables: list[PageTable], num_pages: int) -> None:
        """Share the pages of `tables`, which `find` returned. In groups that see everything take all `num_pages`."""
        for table in tables:
            self.pool.share(table.pages)
        length = tables[0].end
        for table, window in zip(tables, self._windows, strict=True):
            if window is None:
                table.pages += self.pool.allocate(num_pages - length)
        sequence.tables = tables
        sequence.num_pages = num_pages
        sequence.num_named = length
        sequence.num_computed = length * self.page_size

    def enter_slot(self, sequence: Sequence) -> None:
        """See to the state of a sequence that `admit` took and that has a slot now."""
        if self.snapshots is not None:
            limit = (len(sequence.token_ids) - 1) // self.page_size if self.shares else 0
            self.snapshots.enter(sequence, self._find_pages(sequence.chain, limit)[0].end)

    def runs(self, sequence: Sequence) -> tuple[PageRun, ...]:
        """All of its pages."""
        tables = enumerate(sequence.tables)
        return tuple([PageRun(group, table.first, tuple(table.pages)) for group, table in tables if table.pages])

    def free_out_of_window(self) -> None:
        """Free the pages that no token sees after the last planned step, of its sequences in `allocate_chunk`."""
        for sequence in self._passed:
            if sequence.tables:
                self._free_dead(sequence)
        self._passed.clear()

    def _free_dead(self, sequence: Sequence) -> None:
        """Free the pages that no uncomputed token sees; all steps that read them have been planned."""
        for group in self._windowed:
            table = sequence.tables[group]
            dead = first_visible_page(sequence.num_computed, self._windows[group], self.page_size) - table.first
            if dead > 0:
                self.pool.free(table.pages[:dead])
                del table.pages[:dead]
                table.first += dead

    def count_fitting(self, sequence: Sequence, length: int, num_spare: int) -> int:
        """How many of the next `length` tokens have room in groups with a window.

        The groups may take `num_spare` pages together; where that is none, one page each, if there are as many.
        """
        start, count = sequence.num_computed, len(self._windowed)
        end = sequence.tables[self._windowed[0]].end
        added = max(0, num_spare) // count
        if (end + added) * self.page_size <= start:
            added = int(self.pool.num_available >= count)
        return min(length, (end + added) * self.page_size - start)

    def allocate_chunk(self, sequence: Sequence, end: int) -> tuple[PageRun, ...]:
        """Take what tokens up to position `end` lack in groups with a window."""
        self._passed.append(sequence)
        num_pages = self.pool.pages_for(end)
        return tuple(
            self._append(sequence, group, num_pages - sequence.tables[group].end)
            for group in self._windowed
            if sequence.tables[group].end < num_pages
        )

    def count_lacking(self, sequence: Sequence) -> int:
        """Pages that the next token, the first of its page, lacks. Frees those that it does not see."""
        if not self.has_windows:
            return 1
        self._free_dead(sequence)
        place = sequence.num_computed // self.page_size
        return sum(table.end == place for table in sequence.tables)

    def grow(self, sequence: Sequence) -> tuple[PageRun, ...]:
        """Take what `count_lacking` counts."""
        if self._is_plain:
            sequence.num_pages += 1
            return (self._append(sequence, 0, 1),)
        place = sequence.num_computed // self.page_size
        sequence.num_pages = max(sequence.num_pages, place + 1)
        tables = enumerate(sequence.tables)
        return tuple([self._append(sequence, group, 1) for group, table in tables if table.end == place])

    def _append(self, sequence: Sequence, group: int, count: int) -> PageRun:
        table = sequence.tables[group]
        pages = self.pool.allocate(count)
        run = PageRun(group, table.first + len(table.pages), tuple(pages))
        table.pages += pages
        return run

    def register_full_pages(self, sequence: Sequence) -> None:
        """Register the pages that dispatched steps fill with known tokens in the prefix index."""
        if not self.shares:
            return
        num_full = min(sequence.num_computed, len(sequence.token_ids)) // self.page_size
        digest, register = sequence.chain.digest, self.pool.register
        for table, tag in zip(sequence.tables, self._tags, strict=True):
            pages, first = table.pages, table.first
            for place in range(max(sequence.num_named, first), num_full):
                register(pages[place - first], digest(place) + tag)
        sequence.num_named = num_full

    def free(self, sequence: Sequence) -> None:
        """Free all pages of a sequence."""
        self.register_full_pages(sequence)
        if self.num_groups == 1:
            self.pool.free(sequence.tables[0].pages)
        else:  # by place, so that what is evicted first is the end of a prefix, in all groups
            placed = [(place, page) for table in sequence.tables for place, page in enumerate(table.pages, table.first)]
            self.pool.free([page for _, page in sorted(placed)])
        sequence.tables = []
        sequence.num_pages = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError naming the first broken invariant. `sequences` are all that run."""
        sequences = list(sequences)
        if self.snapshots is not None:
            self.snapshots.check()
        self.pool.check([table.pages for sequence in sequences for table in sequence.tables])
        groups: dict[int, int] = {}
        for sequence in sequences:
            name, computed = sequence.request.request_id, sequence.num_computed
            assert len(sequence.tables) == self.num_groups, f"{name} has {len(sequence.tables)} tables"
            for group, (table, window) in enumerate(zip(sequence.tables, self._windows, strict=True)):
                assert computed <= table.end * self.page_size, f"{name} lacks a page in group {group}"
                assert table.end <= sequence.num_pages, f"{name} has pages past its end in group {group}"
                assert window is not None or table.end == sequence.num_pages, f"{name} lacks pages in group {group}"
                first = first_visible_page(computed, window, self.page_size)
                assert table.first <= first, f"{name} freed what it still sees in group {group}"
                for page in table.pages:
                    assert groups.setdefault(page, group) == group, (
                        f"page {page} is in groups {groups[page]} and {group}"
                    )
