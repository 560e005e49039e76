"""Names for prefixes: the chained digest of every full page of a token list.

Two pages have the same digest only if all tokens up to and including theirs, the page size and the salt are
equal, so a digest found in the pool's index names a page that can be shared. Computed lazily, each once.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b

_DIGEST_BYTES = 32
_MATCH_RUN = 64
"""Pages hashed at once by a lookup. Hashing ahead of a miss is not lost: registering needs those digests."""


class DigestChain:
    """Digests of the full pages of `token_ids`, which its owner may append to but never otherwise change."""

    __slots__ = ("_digests", "_page_size", "_root", "_token_ids")

    def __init__(self, token_ids: "array[int]", page_size: int, salt: str) -> None:
        self._token_ids = token_ids
        self._page_size = page_size
        self._root = blake2b(salt.encode(), digest_size=_DIGEST_BYTES).digest()
        self._digests: list[bytes] = []

    @property
    def num_full_pages(self) -> int:
        return len(self._token_ids) // self._page_size

    def digest(self, page: int) -> bytes:
        """Digest of the page at this index of the sequence's table; IndexError if it is not full yet."""
        if page >= len(self._digests):
            self._extend(min(max(page + 1, len(self._digests) + _MATCH_RUN), self.num_full_pages))
        return self._digests[page]

    def digests(self, limit: int) -> Iterator[bytes]:
        """The digests of the first `limit` pages, all of which must be full, computed lazily."""
        known = self._digests
        for page in range(limit):
            if page == len(known):
                self._extend(min(page + _MATCH_RUN, self.num_full_pages))
            yield known[page]

    def _extend(self, num_pages: int) -> None:
        first = len(self._digests)
        tokens = self._token_ids[first * self._page_size : num_pages * self._page_size]
        stride = self._page_size * tokens.itemsize
        content = tokens.tobytes()
        parent = self._digests[-1] if self._digests else self._root
        append = self._digests.append
        for offset in range(0, len(content), stride):
            parent = blake2b(parent + content[offset : offset + stride], digest_size=_DIGEST_BYTES).digest()
            append(parent)
