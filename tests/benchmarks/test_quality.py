"""The table of quality: what is compared with float32, and how agreement is counted."""

from benchmarks.quality import agreement, rows_of


def test_tokens_agree_up_to_the_first_that_differs() -> None:
    assert agreement([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]]) == 6 / 8
    assert agreement([[1]], [[2]]) == 0


def test_rows_are_told_against_float32() -> None:
    base = {"perplexity": 20.0, "nats_per_token": 2.9957, "tokens": 9, "greedy": [[1, 2]]}
    other = {"perplexity": 21.0, "nats_per_token": 3.0445, "tokens": 9, "greedy": [[1, 3]]}
    assert rows_of({"float32": base, "int4": other}) == [
        ("float32", "20.00", "+0.0000", "100%"),
        ("int4", "21.00", "+0.0488", "50%"),
    ]
