"""Repetitions are found as early as by looking at the whole output after every token."""

from hypothesis import given
from hypothesis import strategies as st

from jserve.protocol import RepetitionDetection
from jserve.text.output.repetition import RepetitionDetector


def ends_with_repetition(tokens: list[int], limits: RepetitionDetection) -> bool:
    for size in range(limits.min_pattern_size, limits.max_pattern_size + 1):
        tail = tokens[-size * limits.min_count :]
        if len(tail) == size * limits.min_count and tail == tail[:size] * limits.min_count:
            return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(1, 6).flatmap(lambda size: st.tuples(st.integers(1, size), st.just(size))),
    st.integers(2, 5),
)
def test_repetition_is_seen_with_its_last_token(tokens: list[int], sizes: tuple[int, int], count: int) -> None:
    limits = RepetitionDetection(max_pattern_size=sizes[1], min_pattern_size=sizes[0], min_count=count)
    detector = RepetitionDetector(limits)
    for position, token in enumerate(tokens, 1):
        assert detector.push(token) == ends_with_repetition(tokens[:position], limits)
