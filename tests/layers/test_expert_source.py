"""Every way in which checkpoints keep experts gives the same slice of the same parameter."""

import itertools

import numpy as np
import pytest

from jserve.layers.expert_source import AllBiases, AllExperts, EachExpert
from jserve.layers.source import Index, Source

X, E, F = 3, 64, 6
RNG = np.random.default_rng(0)
PAIR = RNG.standard_normal((X, E, 2, F), np.float32)
"""gate and up, as the parameter has them"""
DOWN = RNG.standard_normal((X, F, E), np.float32)
BIAS = RNG.standard_normal((X, 2, F), np.float32)

TENSORS = {
    **{f"{x}.gate.weight": PAIR[x, :, 0].T for x in range(X)},
    **{f"{x}.up.weight": PAIR[x, :, 1].T for x in range(X)},
    **{f"{x}.down.weight": DOWN[x].T for x in range(X)},
    "one_after_the_other": np.moveaxis(PAIR, 1, -1).reshape(X, 2 * F, E),
    "in_turn": PAIR.swapaxes(2, 3).reshape(X, E, 2 * F),
    "down": DOWN.swapaxes(1, 2),
    "down_inputs_first": DOWN,
    "bias": BIAS.reshape(X, 2 * F),
    "bias_in_turn": BIAS.swapaxes(1, 2).reshape(X, 2 * F),
}
SOURCES: dict[str, tuple[Source, np.ndarray]] = {
    "gate and up of each": (EachExpert(X, ("gate.weight", "up.weight"), (F, E)), PAIR),
    "gate and up of all": (AllExperts("one_after_the_other", X, F, E, parts=2), PAIR),
    "gate and up in turn": (AllExperts("in_turn", X, F, E, parts=2, inputs_first=True, interleaved=True), PAIR),
    "down of each": (EachExpert(X, ("down.weight",), (E, F)), DOWN),
    "down of all": (AllExperts("down", X, E, F), DOWN),
    "down of all, inputs first": (AllExperts("down_inputs_first", X, E, F, inputs_first=True), DOWN),
    "bias": (AllBiases("bias", X, F, parts=2), BIAS),
    "bias in turn": (AllBiases("bias_in_turn", X, F, parts=2, interleaved=True), BIAS),
}


def read(name: str, index: Index) -> np.ndarray:
    return TENSORS[name][index]


@pytest.mark.parametrize("case", SOURCES)
def test_any_slice_is_that_of_the_whole(case: str) -> None:
    source, whole = SOURCES[case]
    assert {name: TENSORS[name].shape for name in source.names()} == source.names()
    bounds = [[slice(0, size), slice(size // 2, size), slice(1, 2)] for size in whole.shape]
    for index in itertools.product(*bounds):
        np.testing.assert_array_equal(source.read(read, index).astype(np.float32), whole[index], err_msg=str(index))
