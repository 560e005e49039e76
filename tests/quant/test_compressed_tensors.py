"""Variants of compressed-tensors beside those of test_stored.py: values in 8 bits with activations as they are."""

import importlib.util
from pathlib import Path

import pytest

from tests.quant import test_stored
from tests.quant.test_stored import FP8, INT8
from tests.quant.worlds import SHAPE
from tests.quant.writers import Stored, compressed
from tests.worlds import make_model

FORMATS: dict[str, Stored] = {
    "w8a16": compressed({"weights": INT8}, "int-quantized"),
    "fp8, channels, weights alone": compressed({"weights": FP8}, "float-quantized"),
    "fp8, tensor, weights alone": compressed({"weights": {**FP8, "strategy": "tensor"}}, "float-quantized"),
    "fp8, groups": compressed({"weights": {**FP8, "strategy": "group", "group_size": 32}}, "float-quantized"),
}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "LlamaForCausalLM", **SHAPE)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_what_the_library_makes_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, parts: int
) -> None:
    monkeypatch.setitem(test_stored.FORMATS, name, FORMATS[name])
    test_stored.test_weights_mean_what_the_format_says(folder, tmp_path, name, parts)
