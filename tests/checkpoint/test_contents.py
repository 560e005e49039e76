"""What `jserve inspect` counts of weights that are packed: parameters, not bytes, and bytes as they lie in the file."""

from pathlib import Path

import pytest

from jserve.checkpoint.contents import read_contents
from jserve.config import EngineConfig
from jserve.runtime import load_model as fill
from tests.checkpoint.gpt_oss_maker import make_gpt_oss, write_by_llama_cpp
from tests.worlds import make_model


def test_blocks_of_mxfp4_are_pairs_and_their_scales_no_parameters(tmp_path: Path) -> None:
    plain, packed = make_gpt_oss(tmp_path / "plain")
    expected = read_contents(str(plain))
    actual = read_contents(str(write_by_llama_cpp(tmp_path / "m.gguf", plain, packed)))
    assert actual.num_parameters == expected.num_parameters
    (blocks,) = [kind for kind in actual.stored if kind.type == "MXFP4"]
    assert blocks.num_parameters == sum(2 * values.size for name, values in packed.items() if name.endswith("_blocks"))
    assert blocks.num_bytes == sum(values.nbytes for values in packed.values())


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_converted_weights_are_as_many_as_before(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_tokenizer", "save_tokenizer"):
        monkeypatch.setattr(fill, name, lambda *_: None)
    source, folder = make_model(tmp_path / "source", "LlamaForCausalLM"), tmp_path / "converted"
    fill.convert(EngineConfig(model=str(source), quantization=kind), folder, lambda *_: None)
    assert read_contents(str(folder)).num_parameters == read_contents(str(source)).num_parameters
