"""Copies of the states of sequences at the ends of pages: prompts that begin alike share more than pages.

A state holds all tokens so far and cannot be cut, so a cached prefix serves a prompt only as far as a copy was taken.
For each sequence that is: at the end of the last page that leaves a token of its prompt to compute; before that where
the pages of the prompt were in the cache farther than the copies, since others may branch off there too; and while it
generates at the end of its newest full page, in place of the one before. The least recently used copy gives way.
"""

from collections import OrderedDict

from jserve.schedule.prefix import DigestChain
from jserve.schedule.sequence import Sequence


class Snapshots:
    """`count` (M) copies behind the states of `num_slots` (R) slots. Owns numbers only; a copy takes its place on the
    device before the next step.
    """

    def __init__(self, count: int, num_slots: int, page_size: int) -> None:
        self._count, self._first, self._page_size = count, num_slots, page_size
        self._free = list(range(num_slots + count - 1, num_slots - 1, -1))
        self._used: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._restores: dict[int, int] = {}  # by slot
        self._saves: dict[int, int] = {}  # by place, the slot

    def longest(self, chain: DigestChain, num_pages: int) -> int:
        """The most pages, up to `num_pages`, at whose end there is a copy of the state."""
        while num_pages and chain.digest(num_pages - 1) not in self._used:
            num_pages -= 1
        return num_pages

    def enter(self, sequence: Sequence, num_matched: int) -> None:
        """Copy the state at the end of what is computed into the slot of a sequence that enters it, and decide where
        its state will be copied. `num_matched` are the pages of it that were in the cache.
        """
        computed = sequence.num_computed
        if computed:
            digest = sequence.chain.digest(computed // self._page_size - 1)
            self._used.move_to_end(digest)
            self._restores[sequence.slot] = self._used[digest]
        last = (len(sequence.token_ids) - 1) // self._page_size
        ends = {pages * self._page_size for pages in (min(num_matched, last), last)}
        sequence.saves = tuple(sorted(end for end in ends if end > computed)) if self._count else ()

    def cut(self, sequence: Sequence, length: int) -> int:
        """So many of the next `length` tokens of a prompt that its state is then one to copy, or all of them."""
        start = sequence.num_computed
        return next((min(length, end - start) for end in sequence.saves if end > start), length)

    def save(self, sequence: Sequence) -> None:
        """Copy the state of a sequence that has computed whole pages, if the host knows all of their tokens."""
        end = sequence.num_computed
        if end > len(sequence.token_ids) or not self._count:
            return
        digest = sequence.chain.digest(end // self._page_size - 1)
        if digest in self._used:
            self._used.move_to_end(digest)
            return
        is_tail = end > sequence.num_prompt
        if is_tail and sequence.tail is not None:
            self._forget(sequence.tail)
        place = self._free.pop() if self._free else self._evict()
        if place is None:
            return
        self._used[digest] = place
        self._saves[place] = sequence.slot
        sequence.tail = digest if is_tail else None

    def take_copies(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        """What to copy before the next step: (slot, copy) to save, then (copy, slot) to restore."""
        saves = tuple([(slot, place) for place, slot in self._saves.items()])
        restores = tuple([(place, slot) for slot, place in self._restores.items()])
        self._saves.clear()
        self._restores.clear()
        return saves, restores

    def _forget(self, digest: bytes) -> None:
        place = self._used.get(digest)
        if place is not None and place not in self._restores.values():
            del self._used[digest]
            self._free.append(place)

    def _evict(self) -> int | None:
        """The place of the least recently used copy; saves come first on the device, so none that is to be restored."""
        wanted = self._restores.values()
        digest = next((digest for digest, place in self._used.items() if place not in wanted), None)
        return None if digest is None else self._used.pop(digest)

    def check(self) -> None:
        """Raise AssertionError where a copy is lost or there twice."""
        places = sorted([*self._free, *self._used.values()])
        assert places == list(range(self._first, self._first + self._count)), f"copies of states are at {places}"
