"""Sources that regroup the rows of one tensor read the same numbers however a parameter is cut."""

from itertools import pairwise

import numpy as np
import pytest

from jserve.layers.fused_source import HeadParts

SOURCES = {
    "queries, keys and values": HeadParts("w", 4, (3, 3, 2), (5,)),
    "some parts once for two heads": HeadParts("w", 4, (3, 2, 2, 1), (5,), frozenset({1, 2}), 2),
    "some parts once for all heads": HeadParts("w", 4, (3, 2, 1), (1, 6), frozenset({1}), 4),
    "a bias": HeadParts("w", 4, (3, 2), (), frozenset({1}), 4),
}


def whole(source: HeadParts, tensor: np.ndarray) -> np.ndarray:
    """The definition: head by head, part by part."""
    heads = []
    for head in range(source.heads):
        first, rows = 0, []
        for part, size in enumerate(source.sizes):
            copies = source.copies if part in source.shared else 1
            start = first + head // copies * size
            rows.append(tensor[start : start + size])
            first += source.heads // copies * size
        heads.append(np.concatenate(rows))
    return np.stack(heads)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4), (0, 3, 4)])
def test_rows_are_regrouped_by_head(name: str, cuts: tuple[int, ...]) -> None:
    source = SOURCES[name]
    (shape,) = source.names().values()
    tensor = np.random.default_rng(0).standard_normal(shape)
    expected = whole(source, tensor)
    full = [slice(0, size) for size in expected.shape]

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        assert name == "w"
        return tensor[index]

    parts = [source.read(read, (slice(low, high), *full[1:])) for low, high in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    inner = [full[0], slice(1, expected.shape[1] - 1), *full[2:]]
    np.testing.assert_array_equal(source.read(read, tuple(inner)), expected[tuple(inner)])
