"""The pages of the KV cache: which are free, who shares which, and which hold a prefix worth keeping.

A page is in exactly one of three places: used (referenced by one or more page tables), idle (unreferenced,
its content named by a digest, evicted least recently used first), or blank (unreferenced, nothing worth
keeping). Owns numbers only; the content lives on the device and is never touched here.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from jserve.schedule.prefix import DigestChain


class PagePool:
    """`num_pages` (N) pages of `page_size` (B) tokens each, with reference counts and a prefix index."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a pool of {num_pages} pages of {page_size} tokens is not possible; both must be >= 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._references = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._index: dict[bytes, int] = {}
        self._blank = list(range(num_pages - 1, -1, -1))
        # Not a plain dict: finding its first key scans the holes that earlier evictions left in front.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can hand out now: blank ones and idle ones."""
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages that at least one page table references."""
        return self.num_pages - self.num_available

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages for one owner, blank ones first, then the least recently used idle ones.

        Raises ValueError, and takes none, if fewer than `count` are available.
        """
        if count > self.num_available:
            raise ValueError(
                f"{count} pages are wanted but only {self.num_available} of {self.num_pages} are available"
            )
        pages = []
        for _ in range(count):
            page = self._blank.pop() if self._blank else self._evict()
            self._references[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Reference pages that `match` just returned once more."""
        for page in pages:
            if self._references[page] == 0:
                del self._idle[page]
            self._references[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Drop one reference to each page of a table.

        The tail goes first, so that among the pages of one prefix the head is evicted last: without its
        head a chain cannot be found.
        """
        for page in reversed(pages):
            references = self._references[page] - 1
            if references < 0:
                raise ValueError(f"page {page} is freed but nobody holds it")
            self._references[page] = references
            if references == 0:
                if self._digests[page] is None:
                    self._blank.append(page)
                else:
                    self._idle[page] = None

    def register(self, page: int, digest: bytes) -> None:
        """Name the content of a full page, so that others can share it. Of equal pages the first stays."""
        if digest not in self._index and self._digests[page] is None:
            self._index[digest] = page
            self._digests[page] = digest

    def match(self, chain: DigestChain, limit: int, tag: bytes = b"") -> list[int]:
        """The longest run of pages, at most `limit`, that hold the prefix of `chain`, named by its digests and
        `tag`. References nothing.
        """
        pages: list[int] = []
        index = self._index
        for digest in chain.digests(limit):
            page = index.get(digest + tag)
            if page is None:
                break
            pages.append(page)
        return pages

    def find(self, digest: bytes) -> int | None:
        """The page of this name."""
        return self._index.get(digest)

    def count_used(self, pages: Iterable[int]) -> int:
        """How many of these pages somebody holds already: sharing those takes nothing from the rest."""
        return sum(1 for page in pages if self._references[page])

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        digest = self._digests[page]
        assert digest is not None
        del self._index[digest]
        self._digests[page] = None
        return page

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError naming the first broken invariant. `tables` are all page tables alive."""
        tables = [list(table) for table in tables]
        for table in tables:
            assert len(set(table)) == len(table), f"a page table names a page twice: {table}"
        owners = Counter(page for table in tables for page in table)
        blank = set(self._blank)
        assert len(blank) == len(self._blank), f"a page is blank twice: {self._blank}"
        for page, references in enumerate(self._references):
            assert references == owners[page], f"page {page} counts {references} owners but has {owners[page]}"
            places = (references > 0) + (page in blank) + (page in self._idle)
            assert places == 1, f"page {page} is in {places} of the places used, blank and idle"
            digest = self._digests[page]
            assert page not in blank or digest is None, f"blank page {page} has a digest"
            assert page not in self._idle or digest is not None, f"idle page {page} has no digest"
            assert digest is None or self._index.get(digest) == page, f"page {page} is missing in the index"
        named = sum(digest is not None for digest in self._digests)
        assert len(self._index) == named, f"the index has {len(self._index)} entries for {named} named pages"
