"""The cases of test_stored.py see a format that is read wrongly: their comparison, bit for bit, fails."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jserve.quant import awq, compressed_tensors, gptq, plain_values
from jserve.quant.scheme import consecutive
from tests.quant import test_stored
from tests.quant.worlds import SHAPE
from tests.worlds import make_model

Bug = Callable[[pytest.MonkeyPatch], None]


def zero_points_one_more(module: Any) -> Bug:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        stored_zero = module.stored_zero
        monkeypatch.setattr(module, "stored_zero", lambda codes, bits: stored_zero(codes, bits) + np.int8(1))

    return plant


def the_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero points of format 1 as format 2 has them."""
    read = gptq._weight
    monkeypatch.setattr(gptq, "_weight", lambda *args: replace(read(*args), zero_offset=0))


def inputs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "shared_index", lambda source, read, name, groups: consecutive(16 * groups, 16))


def outputs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "PLACES", tuple(range(8)))


def first_blocks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scales of the first block of outputs for all of them."""
    read = plain_values.PlainValues.scales

    def broken(self: Any, *args: Any) -> np.ndarray:
        actual = read(self, *args)
        return np.repeat(actual[:1], len(actual), axis=0)

    monkeypatch.setattr(plain_values.PlainValues, "scales", broken)


BUGS: dict[str, tuple[str, Bug]] = {
    "zero points less one are taken as they are": ("gptq, asymmetric", the_other_version),
    "activation order is left out": ("gptq, act order", inputs_in_order),
    "eight outputs of a word in order": ("awq", outputs_in_order),
    "awq, zero points": ("awq", zero_points_one_more(awq)),
    "w4a16, zero points": ("w4a16, asymmetric", zero_points_one_more(compressed_tensors)),
    "one row of blocks for all": ("fp8, blocks", first_blocks_for_all),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "LlamaForCausalLM", **SHAPE)


@pytest.mark.parametrize("bug", BUGS)
def test_the_case_fails(bug: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, plant = BUGS[bug]
    if case.startswith("w4a16"):
        pytest.importorskip("compressed_tensors")
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_stored.test_weights_mean_what_the_format_says(folder, tmp_path, case, 1)
