"""Quantized experts: what is in memory means what the format says, answers are those of these weights, and the router
stays as it is; whole experts or slices of them on each device.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jserve.errors import CheckpointError
from jserve.quant import OfExperts, OnLoad, abstract_experts
from jserve.quant.mxfp4 import Mxfp4Weight
from jserve.weights.quantized import ArrayForm, dummy_quantized
from pallas_kernels.moe import PackedExperts, dequantize
from tests.quant.prefill import prefill_logits, prepared_and_weights
from tests.quant.test_on_load import rounded
from tests.quant.worlds import EXACT, FLIPPED, PROMPTS, float_logits, tensors_of, with_tensors
from tests.quant.writers import Stored, awq, compressed_act_order, fp8_blocks, fp8_tensor, gptq
from tests.worlds import make_model

SIZES = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
SPLITS = [(1, 1), (2, 1), (2, 2)]
"""(--tensor-parallel-size, --expert-parallel-size); of 96 inputs in groups of 32 a slice cuts one in two."""
FORMATS: dict[str, Stored] = {
    "gptq, asymmetric": gptq(4, 32, symmetric=False),
    "gptq, 8 bits, whole inputs": gptq(8, -1, symmetric=True),
    "awq": awq(32, ignored=("gate",)),
    "fp8, blocks": fp8_blocks(32, 32),
    "fp8, blocks larger than the weight": fp8_blocks(128, 128),
    "fp8, tensor, static": fp8_tensor(static=True),
}
QUICK = ("gptq, asymmetric", "awq", "fp8, blocks")


def is_quantized(name: str) -> bool:
    """Whether a tensor of a tiny Mixtral is a matrix that is quantized: not the router."""
    return bool(re.search(r"(_proj|\.w[123])\.weight$", name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "MixtralForCausalLM", **SIZES)


def write(folder: Path, to: Path, stored: Stored) -> tuple[Path, Path]:
    """The model in a stored format, and in floating point what that means."""
    packed: dict[str, torch.Tensor] = {}
    floats: dict[str, torch.Tensor] = {}
    for name, value in tensors_of(folder).items():
        if not is_quantized(name):
            packed[name] = floats[name] = value
            continue
        tensors, floats[name] = stored.write(value)
        packed |= {f"{name.removesuffix('weight')}{suffix}": tensor for suffix, tensor in tensors.items()}
    target = to / "packed"
    target.mkdir()
    raw = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, "quantization_config": stored.config}))
    save_file({name: value.contiguous() for name, value in packed.items()}, target / "model.safetensors")
    return target, with_tensors(folder, to / "floats", floats)


def loaded_experts(folder: Path, split: tuple[int, int]) -> dict[str, np.ndarray]:
    """gate_up_proj [X, 2, F, E] and down_proj [X, E, F] of the first layer, dequantized."""
    prepared, leaves = prepared_and_weights(folder, None, split[0], expert_parts=split[1])
    graph, state = nnx.split(prepared.model, nnx.Param)
    model: Any = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))
    experts = model.layers[0].mlp.experts
    actual = {name: getattr(experts, name).get_value() for name in ("gate_up_proj", "down_proj")}
    assert all(isinstance(weight, PackedExperts) for weight in actual.values())
    return {name: np.asarray(dequantize(weight)) for name, weight in actual.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FORMATS]
)
def test_stored_experts_mean_what_the_format_says(folder: Path, tmp_path: Path, name: str) -> None:
    packed, floats = write(folder, tmp_path, FORMATS[name])
    expected = {key: value.numpy() for key, value in tensors_of(floats).items()}
    prefix = "model.layers.0.block_sparse_moe.experts."
    for split in SPLITS:
        actual = loaded_experts(packed, split)
        for x in range(4):
            for half, part in enumerate(("w1", "w3")):
                np.testing.assert_array_equal(actual["gate_up_proj"][x, half], expected[f"{prefix}{x}.{part}.weight"])
            np.testing.assert_array_equal(actual["down_proj"][x], expected[f"{prefix}{x}.w2.weight"])


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("int4", (2, 1)),
        ("fp8", (2, 2)),
        pytest.param("int8", (2, 1), marks=pytest.mark.slow),
        pytest.param("int4", (1, 1), marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_experts_rounded_on_load(
    folder: Path, tmp_path: Path, kind: str, split: tuple[int, int]
) -> None:
    """Activations are rounded in front of linear layers, with fp8, and of experts never."""
    floats = {
        name: torch.tensor(rounded(value.numpy(), kind), dtype=torch.float32) if is_quantized(name) else value
        for name, value in tensors_of(folder).items()
    }
    expected = float_logits(
        with_tensors(folder, tmp_path / "floats", floats), PROMPTS["middle"], "fp8" if kind == "fp8" else "float", 2
    )
    actual = prefill_logits(folder, PROMPTS["middle"], kind, split[0], expert_parts=split[1])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=FLIPPED if kind == "fp8" else EXACT)


@pytest.mark.parametrize("split", SPLITS)
def test_the_plan_counts_the_packed_bytes_of_experts_and_devices_hold_them(
    folder: Path, split: tuple[int, int]
) -> None:
    prepared, weights = prepared_and_weights(folder, "int4", split[0], expert_parts=split[1])
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in weights)
    assert prepared.plan.weights == held
    quantized = sum(value.numel() for name, value in tensors_of(folder).items() if is_quantized(name))
    others = sum(value.numel() for name, value in tensors_of(folder).items() if not is_quantized(name))
    # 24 bits of scale and zero point for each 16 inputs at least.
    assert held <= quantized * (4 + 24 / 16) / 8 / split[0] + 4 * others


def test_experts_in_activation_order_are_refused(folder: Path, tmp_path: Path) -> None:
    packed, _ = write(folder, tmp_path, compressed_act_order(16))
    with pytest.raises(
        CheckpointError, match=r"experts in activation order .* are not supported; supported are groups"
    ):
        prepared_and_weights(packed)


def test_a_share_of_half_a_byte_is_refused_with_the_numbers() -> None:
    with pytest.raises(CheckpointError, match="32 inputs over 32 devices in groups of 32 would cut bytes in two"):
        OfExperts(Mxfp4Weight(), 32).layout(32)


def test_every_mxfp4_value_is_exact() -> None:
    """All bytes with all exponents but those that are NaN and whose values are subnormal."""
    exponents = np.arange(4, 250, dtype=np.uint8)
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (1, len(exponents), 16, 16)).copy()
    scales = np.broadcast_to(exponents[None, :, None], (1, len(exponents), 16)).copy()
    packed = PackedExperts(blocks.reshape(1, len(exponents), 256), scales, None, "mxfp4")
    pairs = torch.from_numpy(blocks), torch.from_numpy(scales)
    expected = convert_moe_packed_tensors(*pairs, dtype=torch.float32).numpy().swapaxes(1, 2)
    np.testing.assert_array_equal(np.asarray(jax.jit(dequantize)(packed)), expected)


@pytest.mark.parametrize("scheme", [Mxfp4Weight(), OnLoad("int4"), OnLoad("fp8"), OnLoad("int8")], ids=repr)
def test_dummy_experts_are_as_large_as_those_of_float_layers(scheme: Any) -> None:
    of_experts = OfExperts(scheme, 1)
    layout = of_experts.layout(64)
    assert layout is not None
    abstract = abstract_experts(layout, (4, 2, 48), 64)
    forms = {name: ArrayForm(array.shape, array.dtype) for name, array in abstract.arrays().items()}
    pool = np.random.default_rng(0).standard_normal(1 << 14, np.float32) * np.float32(0.02)
    arrays = {"zero": None} | dummy_quantized(of_experts, forms, pool)
    assert 0.015 < float(dequantize(PackedExperts(**arrays, kind=layout.kind)).std()) < 0.025
