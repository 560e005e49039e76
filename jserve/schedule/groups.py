"""Cache groups: layers of one window keep the same positions, so they share a page table and free the same pages.

A token at position p sees the positions above p - window. All groups take their pages from one pool, so what long
contexts leave unused in windowed layers is there for the others, and no split of the memory is guessed.
"""

Windows = tuple[int | None, ...]
"""The sliding window of each group in tokens, None where its layers see everything; those come first."""


def first_visible_page(position: int, window: int | None, page_size: int) -> int:
    """Index of the first page that a token at this position, or at a later one, sees."""
    return 0 if window is None else max(0, position - window + 1) // page_size


def window_pages(window: int, page_size: int) -> int:
    """Pages that hold all that the tokens of any one page see, and that page."""
    return -(-(window - 1) // page_size) + 1


def pages_held(num_pages: int, windows: Windows, page_size: int) -> int:
    """Pages of all groups that a sequence of `num_pages` pages of tokens holds while it generates: the fewest with
    which it can go on.
    """
    return sum(num_pages if window is None else min(num_pages, window_pages(window, page_size)) for window in windows)


def longest_sequence(num_pages: int, windows: Windows, page_size: int, most: int) -> int:
    """Tokens, up to `most`, of the longest sequence that so many pages of the pool can serve."""
    low, high = 0, -(-most // page_size)
    while low < high:
        middle = (low + high + 1) // 2
        if pages_held(middle, windows, page_size) <= num_pages:
            low = middle
        else:
            high = middle - 1
    return min(most, low * page_size)


class PageTable:
    """The pages of one sequence in one group, in the order of its tokens. The front ones may have been freed."""

    __slots__ = ("first", "pages")

    def __init__(self, first: int, pages: list[int]) -> None:
        self.first = first
        """Index of `pages[0]`: how many in front of it were freed, or never taken."""
        self.pages = pages

    @property
    def end(self) -> int:
        """Index behind the last page."""
        return self.first + len(self.pages)
