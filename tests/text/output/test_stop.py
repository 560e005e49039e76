"""Stop strings on text in pieces, against the definition on the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jserve.text.output.stop import StopMatcher


def _define(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Read one character at a time; the first that completes a stop string ends it, the longest wins."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            matched = max(complete, key=len)
            return text[: end if include else end - len(matched)], matched
    return text, None


def _run(pieces: list[str], stops: tuple[str, ...], include: bool) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops, include)
    emitted = []
    matched = None
    for piece in pieces:
        result = matcher.push(piece)
        emitted.append(result.emit)
        matched = matched or result.matched
    return [*emitted, matcher.flush()], matched


# Two letters make partial matches and overlaps the rule rather than the exception.
letters = st.text("ab", max_size=14)
stop_sets = st.lists(st.text("ab", max_size=5), max_size=3).map(tuple)


@settings(max_examples=1000)
@given(pieces=st.lists(letters, max_size=6), stops=stop_sets, include=st.booleans())
def test_any_cutting_gives_what_the_whole_text_gives(pieces: list[str], stops: tuple[str, ...], include: bool) -> None:
    emitted, matched = _run(pieces, stops, include)
    assert ("".join(emitted), matched) == _define("".join(pieces), stops, include)


@settings(max_examples=500)
@given(pieces=st.lists(letters, max_size=6), stops=stop_sets)
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops, include=False)
    seen = sent = ""
    for piece in pieces:
        result = matcher.push(piece)
        seen, sent = seen + piece, sent + result.emit
        if result.matched is not None:
            return
        held = seen[len(sent) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
        longer = [seen[-size:] for size in range(len(held) + 1, len(seen) + 1)]
        assert not any(stop.startswith(end) for stop in stops if stop for end in longer)


@pytest.mark.parametrize(
    ("pieces", "stops", "include", "expected", "matched"),
    [
        (["Hello</", "s> more"], ("</s>",), False, ["Hello", "", ""], "</s>"),
        (["Hello</", "s> more"], ("</s>",), True, ["Hello", "</s>", ""], "</s>"),
        (["a\nUs", "ual"], ("\nUser:",), False, ["a", "\nUsual", ""], None),
        (["a\nUs"], ("\nUser:",), False, ["a", "\nUs"], None),
        (["x\n", "\n", "y"], ("\n\n",), False, ["x", "", "", ""], "\n\n"),
        (["aab", "aac"], ("aaba", "b"), False, ["aa", "", ""], "b"),
        (["any", "thing"], (), False, ["any", "thing", ""], None),
        (["any", "thing"], ("",), False, ["any", "thing", ""], None),
        (["naïve 👍", "👍"], ("👍👍",), False, ["naïve ", "", ""], "👍👍"),
    ],
)
def test_examples(
    pieces: list[str], stops: tuple[str, ...], include: bool, expected: list[str], matched: str | None
) -> None:
    assert _run(pieces, stops, include) == (expected, matched)


def test_text_after_a_match_is_dropped() -> None:
    matcher = StopMatcher(("x",), include=False)
    assert matcher.push("axb") == ("a", "x")
    assert matcher.push("c") == ("", None)
    assert matcher.flush() == ""
