"""PagePool: who owns which page, and which prefix is found."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve.schedule.pool import PagePool
from jserve.schedule.prefix import DigestChain


def _chain(*token_ids: int, salt: str = "") -> DigestChain:
    return DigestChain(array("i", token_ids), 2, salt)


def _cache(pool: PagePool, chain: DigestChain) -> list[int]:
    """Compute and free a sequence whose full pages are then idle."""
    pages = pool.allocate(chain.num_full_pages)
    for position, page in enumerate(pages):
        pool.register(page, chain.digest(position))
    pool.free(pages)
    return pages


def test_a_new_pool_hands_out_every_page_once() -> None:
    pool = PagePool(4, 2)
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]
    assert (pool.num_available, pool.num_used) == (0, 4)


def test_asking_for_more_pages_than_there_are_takes_none() -> None:
    pool = PagePool(4, 2)
    with pytest.raises(ValueError, match="5 pages are wanted but only 4 of 4 are available"):
        pool.allocate(5)
    assert pool.num_available == 4


def test_a_page_freed_too_often_is_an_error() -> None:
    pool = PagePool(4, 2)
    pages = pool.allocate(1)
    pool.free(pages)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.free(pages)


def test_a_pool_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="both must be >= 1"):
        PagePool(0, 2)


def test_a_shared_page_stays_used_until_its_last_owner_frees_it() -> None:
    pool, chain = PagePool(4, 2), _chain(1, 2)
    pages = _cache(pool, chain)
    pool.share(pages)
    pool.share(pages)
    pool.check([pages, pages])
    pool.free(pages)
    assert pool.num_used == 1
    pool.free(pages)
    assert pool.num_used == 0
    pool.check([])


def test_the_longest_cached_prefix_is_matched() -> None:
    pool = PagePool(8, 2)
    pages = _cache(pool, _chain(1, 2, 3, 4))
    assert pool.match(_chain(1, 2, 3, 4, 5, 6), 3) == pages
    assert pool.match(_chain(1, 2, 3, 9, 5, 6), 3) == pages[:1]
    assert pool.match(_chain(1, 2, 3, 4, 5, 6), 1) == pages[:1]
    assert pool.match(_chain(9, 2, 3, 4), 2) == []


def test_equal_pages_after_different_heads_are_different() -> None:
    pool = PagePool(8, 2)
    _cache(pool, _chain(1, 1, 3, 4))
    _cache(pool, _chain(2, 2))
    assert len(pool.match(_chain(2, 2, 3, 4), 2)) == 1


def test_salts_isolate_prefixes() -> None:
    pool = PagePool(8, 2)
    pages = _cache(pool, _chain(1, 2, salt="a"))
    assert pool.match(_chain(1, 2, salt="b"), 1) == []
    assert pool.match(_chain(1, 2), 1) == []
    assert pool.match(_chain(1, 2, salt="a"), 1) == pages


def test_of_two_pages_with_equal_content_the_first_stays_the_shared_one() -> None:
    pool, chain = PagePool(4, 2), _chain(1, 2)
    first, second = pool.allocate(2)
    pool.register(first, chain.digest(0))
    pool.register(second, chain.digest(0))
    assert pool.match(chain, 1) == [first]
    pool.free([first, second])
    pool.check([])
    assert pool.match(chain, 1) == [first]


def test_blank_pages_go_before_cached_ones() -> None:
    pool, chain = PagePool(4, 2), _chain(1, 2)
    _cache(pool, chain)
    pool.allocate(3)
    assert pool.match(chain, 1)
    pool.allocate(1)
    assert not pool.match(chain, 1)


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = PagePool(3, 2)
    old, middle, new = _chain(1, 1), _chain(2, 2), _chain(3, 3)
    for chain in (old, middle, new):
        _cache(pool, chain)
    touched = pool.match(old, 1)
    pool.share(touched)
    pool.free(touched)
    pool.allocate(1)
    assert [bool(pool.match(chain, 1)) for chain in (old, middle, new)] == [True, False, True]
    pool.allocate(1)
    assert [bool(pool.match(chain, 1)) for chain in (old, middle, new)] == [True, False, False]


def test_a_chain_is_evicted_from_its_tail() -> None:
    pool, chain = PagePool(3, 2), _chain(1, 2, 3, 4, 5, 6)
    pages = _cache(pool, chain)
    for left in (2, 1, 0):
        pool.allocate(1)
        assert pool.match(chain, 3) == pages[:left]


def test_a_used_page_is_never_evicted() -> None:
    pool, chain = PagePool(3, 2), _chain(1, 2)
    pages = _cache(pool, chain)
    pool.share(pages)
    taken = pool.allocate(2)
    assert pool.num_available == 0
    assert not set(taken) & set(pages)
    assert pool.match(chain, 1) == pages


def test_an_evicted_page_is_forgotten_before_it_is_used_again() -> None:
    pool, chain = PagePool(1, 2), _chain(1, 2)
    _cache(pool, chain)
    pages = pool.allocate(1)
    assert pool.match(chain, 1) == []
    pool.free(pages)
    assert pool.match(chain, 1) == []
    pool.check([])


def test_check_names_a_leak() -> None:
    pool = PagePool(4, 2)
    pages = pool.allocate(2)
    pool.check([pages])
    with pytest.raises(AssertionError, match=f"page {pages[1]} counts 1 owners but has 0"):
        pool.check([pages[:1]])
    with pytest.raises(AssertionError, match="counts 1 owners but has 2"):
        pool.check([pages, pages[:1]])


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=200), st.integers(0, 199))
def test_digests_are_equal_exactly_while_prefixes_are(token_ids: list[int], changed: int) -> None:
    other = list(token_ids)
    if changed < len(other):
        other[changed] += 1
    one, two = (DigestChain(array("i", tokens), 2, "") for tokens in (token_ids, other))
    for page in range(one.num_full_pages):
        assert (one.digest(page) == two.digest(page)) == (token_ids[: 2 * page + 2] == other[: 2 * page + 2])


def test_a_chain_follows_its_growing_token_list() -> None:
    token_ids = array("i", [1, 2, 3])
    chain = DigestChain(token_ids, 2, "")
    chain.digest(0)
    with pytest.raises(IndexError):
        chain.digest(1)
    token_ids.append(4)
    assert chain.digest(1) == _chain(1, 2, 3, 4).digest(1)
