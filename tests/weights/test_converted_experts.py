"""`jserve convert` of experts and latents: the arrays on every mesh are those that the source gives it."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jserve.checkpoint import open_checkpoint
from jserve.config import EngineConfig
from jserve.quant.converted import read_converted
from jserve.runtime import load_model as fill
from jserve.runtime.load_model import check_weights, convert, load_weights
from jserve.runtime.platform import make_mesh
from jserve.runtime.prepare import prepare
from tests.worlds import LATENT, make_model, numbers

SPLITS = [(1, 1), (2, 1), (4, 2)]
"""(--tensor-parallel-size, --expert-parallel-size); of 48 inputs in groups of 16 two devices cut one."""
GPT_OSS = {"num_local_experts": 4, "head_dim": 16, "hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "load_tokenizer", lambda *_: None)
    monkeypatch.setattr(fill, "save_tokenizer", lambda *_: None)


def mixtral(folder: Path) -> Path:
    return make_model(folder, "MixtralForCausalLM", dtype=torch.bfloat16, num_local_experts=4, num_hidden_layers=1)


def deepseek(folder: Path) -> Path:
    return make_model(folder, "DeepseekV3ForCausalLM", dtype=torch.bfloat16, n_group=4, topk_group=2, **LATENT)


def gpt_oss_in_mxfp4(folder: Path) -> Path:
    make_model(folder, "GptOssForCausalLM", dtype=torch.bfloat16, num_hidden_layers=1, **GPT_OSS)
    tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (count, outputs, inputs // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(121, 126, (count, outputs, inputs // 32), np.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"quantization_config": {"quant_method": "mxfp4"},', 1))
    return folder


def arrays_on(folder: Path, split: tuple[int, int], quantization: str | None = None) -> list[np.ndarray]:
    """All weights of a server on so many devices."""
    mesh, checkpoint = make_mesh(*split), open_checkpoint(folder)
    engine_config = EngineConfig(
        model=str(folder),
        quantization=quantization,
        tensor_parallel_size=split[0],
        expert_parallel_size=split[1],
        kv_cache_memory_bytes=4 << 20,
    )
    # A folder holds weights as rounding makes them; what native code makes of them is for one CPU.
    with mock.patch("jserve.runtime.prepare.has_native_code", return_value=False):
        prepared = prepare(engine_config, checkpoint, mesh)
    check_weights(prepared.model, prepared.blueprint, checkpoint)
    weights = load_weights(engine_config, prepared.model, prepared.blueprint, checkpoint, mesh, lambda *_: None)
    return [np.asarray(array) for array in weights]


@pytest.mark.parametrize(
    ("make", "kind", "kept"),
    [
        (mixtral, None, {"float32"}),
        (mixtral, "int4", {"uint8", "uint16"}),
        (deepseek, "fp8", {"float8_e4m3fn", "int8"}),
        (gpt_oss_in_mxfp4, None, {"uint8"}),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_arrays_are_those_of_the_source(make: Any, kind: str | None, kept: set[str], tmp_path: Path) -> None:
    source, folder = make(tmp_path / "source"), tmp_path / "converted"
    convert(EngineConfig(model=str(source), quantization=kind), folder, lambda *_: None)
    for split in SPLITS:
        expected, actual = arrays_on(source, split, kind), arrays_on(folder, split)
        assert kept <= {array.dtype.name for array in actual}
        for array, other in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(numbers(array), numbers(other))


def test_files_hold_numbers_and_not_the_bits_that_one_device_has_of_them(tmp_path: Path) -> None:
    """A GPU reads experts in bfloat16 that a CPU converted, and keeps as uint16."""
    source, folder = mixtral(tmp_path / "source"), tmp_path / "converted"
    convert(EngineConfig(model=str(source)), folder, lambda *_: None)
    checkpoint, original = open_checkpoint(folder), open_checkpoint(source)
    assert {info.dtype for info in checkpoint.tensors().values()} == {"bfloat16"}
    first = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    expert = checkpoint.read(first)[0].astype(np.float32)
    np.testing.assert_array_equal(expert.T, original.read(first).astype(np.float32))


def test_mxfp4_has_scales_of_its_own_type() -> None:
    layout = {"kind": "mxfp4", "group_size": 32, "scale_dtype": "float8_e8m0fnu"}
    assert read_converted({"modules": {"experts": layout}}, "float32").scheme("experts") is not None
