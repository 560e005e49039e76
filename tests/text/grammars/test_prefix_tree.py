"""One regular expression for many texts: it matches them and nothing else, and is short where they begin alike."""

import re

from hypothesis import given
from hypothesis import strategies as st

from jserve.text.grammars.prefix_tree import prefix_tree

_TEXTS = st.sets(st.text(alphabet='ab/\\.*\n"[é👍 -', min_size=1, max_size=6), min_size=1, max_size=12)


@given(_TEXTS, _TEXTS)
def test_it_matches_its_texts_and_no_others(texts: set[str], others: set[str]) -> None:
    pattern = re.compile(prefix_tree(sorted(texts)))
    assert all(pattern.fullmatch(text) for text in texts)
    assert not any(pattern.fullmatch(text) for text in others - texts)


def test_common_beginnings_stand_once() -> None:
    texts = sorted(f"https://example.com/page/{number}" for number in range(10_000))
    assert len(prefix_tree(texts)) < 10_000 * 5
    assert prefix_tree(texts).count("example") == 1


def test_texts_that_go_on_and_on_alike_do_not_nest_without_end() -> None:
    texts = ["a" * count for count in range(1, 400)]
    tree = prefix_tree(texts)
    pattern = re.compile(tree)
    assert all(pattern.fullmatch(text) for text in texts)
    assert not pattern.fullmatch("a" * 400)
    deepest = level = 0
    for sign in tree:
        level += (sign == "(") - (sign == ")")
        deepest = max(deepest, level)
    assert deepest < 50
