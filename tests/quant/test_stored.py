"""Quantized checkpoints: what is in memory means what the format says, on one and two devices, bit for bit."""

import importlib.util
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

from jserve.config import STORED_QUANTIZATIONS
from jserve.errors import CheckpointError, ConfigError
from jserve.layers.linear import Linear
from jserve.quant import PackedMatrix, QuantizedWeight, detect
from jserve.quant.detect import STORED
from tests.quant.prefill import prefill_logits, prepared_and_weights
from tests.quant.worlds import EXACT, FLIPPED, PROMPTS, SHAPE, float_logits, is_linear, tensors_of, with_tensors
from tests.quant.writers import Stored, awq, compressed, compressed_act_order, fbgemm, fp8_blocks, fp8_tensor, gptq
from tests.worlds import make_model

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
TOKENS = {"strategy": "token", "dynamic": True, "symmetric": True, "num_bits": 8}
STATIC = {"strategy": "tensor", "dynamic": False, "symmetric": True, "num_bits": 8, "type": "float"}

FORMATS: dict[str, Stored] = {
    "gptq": gptq(4, 32, symmetric=True),
    "gptq, asymmetric": gptq(4, 32, symmetric=False),
    "gptq, v2": gptq(4, 32, symmetric=False, version=2),
    "gptq, act order": gptq(4, 16, symmetric=True, act_order=True),
    "gptq, 8 bits, asymmetric, act order": gptq(8, 32, symmetric=False, act_order=True),
    "gptq, 8 bits, whole inputs": gptq(8, -1, symmetric=True),
    "awq": awq(32),
    "fp8, blocks": fp8_blocks(32, 32),
    "fp8, blocks larger than the weight": fp8_blocks(128, 128),
    "fp8, blocks that do not divide": fp8_blocks(24, 40),
    "fp8, tensor, dynamic": fp8_tensor(static=False),
    "fp8, tensor, static": fp8_tensor(static=True),
    "fbgemm_fp8": fbgemm(),
    "w4a16": compressed({"weights": INT4}, "pack-quantized"),
    "w4a16, asymmetric": compressed({"weights": {**INT4, "symmetric": False}}, "pack-quantized"),
    "w4a16, act order": compressed_act_order(16),
    "w4a16, whole inputs": compressed({"weights": {**INT8, "num_bits": 4}}, "pack-quantized"),
    "w8a16, asymmetric": compressed({"weights": {**INT4, "num_bits": 8, "symmetric": False}}, "pack-quantized"),
    "w8a8": compressed({"weights": INT8, "input_activations": {**TOKENS, "type": "int"}}, "int-quantized"),
    "fp8, channels, dynamic": compressed(
        {"weights": FP8, "input_activations": {**TOKENS, "type": "float"}}, "float-quantized"
    ),
    "fp8, static": compressed(
        {"weights": {**FP8, "strategy": "tensor"}, "input_activations": STATIC}, "float-quantized"
    ),
    "fp8, block": compressed({"weights": {**FP8, "strategy": "block", "block_structure": [32, 32]}}, "float-quantized"),
}
COMPUTED = ["gptq, act order", "fp8, blocks", "fp8, tensor, static", "w4a16, asymmetric", "w8a8"]
"""Formats whose logits are compared too: one of each kind of product."""


def needs_library(name: str) -> Any:
    missing = FORMATS[name].config["quant_method"] == "compressed-tensors" and not importlib.util.find_spec(
        "compressed_tensors"
    )
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="compressed-tensors is not installed"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "LlamaForCausalLM", **SHAPE)


def write(
    folder: Path, to: Path, stored: Stored, leave: str = r"$^", config: dict[str, Any] | None = None
) -> tuple[Path, Path]:
    """The model in a stored format, and in floating point what that means. `leave`: modules that stay as they are."""
    packed: dict[str, torch.Tensor] = {}
    floats: dict[str, torch.Tensor] = {}
    for name, value in tensors_of(folder).items():
        if not is_linear(name) or re.search(leave, name):
            packed[name] = floats[name] = value
            continue
        tensors, floats[name] = stored.write(value)
        packed |= {f"{name.removesuffix('weight')}{suffix}": tensor for suffix, tensor in tensors.items()}
    target = to / "packed"
    target.mkdir()
    raw = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, "quantization_config": config or stored.config}))
    save_file({name: value.contiguous() for name, value in packed.items()}, target / "model.safetensors")
    return target, with_tensors(folder, to / "floats", floats)


def quantized_weights(folder: Path, parts: int) -> dict[tuple[Any, ...], tuple[QuantizedWeight | PackedMatrix, Any]]:
    """The loaded weights by their module, with the sources of their values."""
    prepared, leaves = prepared_and_weights(folder, None, parts)
    graph, state = nnx.split(prepared.model, nnx.Param)
    model = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))
    actual = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear) and isinstance(module.weight.get_value(), QuantizedWeight | PackedMatrix):
            actual[path] = (module.weight.get_value(), module.weight.get_metadata()["source"])
    return actual


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", [*map(needs_library, FORMATS)])
def test_weights_mean_what_the_format_says(folder: Path, tmp_path: Path, name: str, parts: int) -> None:
    packed, floats = write(folder, tmp_path, FORMATS[name])
    expected = {key: value.numpy() for key, value in tensors_of(floats).items()}
    actual = quantized_weights(packed, parts)
    assert len(actual) == 4, "qkv, o, gate_up, down"
    for path, (weight, source) in actual.items():

        def read(relative: str, index: tuple[slice, ...], path: tuple[Any, ...] = path) -> np.ndarray:
            module = list(map(str, path))
            while relative.startswith("../"):
                module, relative = module[:-1], relative[3:]
            return expected[".".join((*module, relative))][index]

        meant = np.asarray(weight.dequantize())
        whole = source.read(read, tuple(slice(0, size) for size in meant.shape))
        np.testing.assert_array_equal(meant, whole, err_msg=str(path))


@pytest.mark.parametrize("name", [*map(needs_library, COMPUTED)])
def test_logits_are_those_of_the_float_model(folder: Path, tmp_path: Path, name: str) -> None:
    packed, floats = write(folder, tmp_path, FORMATS[name])
    activations = FORMATS[name].activations
    actual = prefill_logits(packed, PROMPTS["middle"], parts=2)
    expected = float_logits(floats, PROMPTS["middle"], activations, 2)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT if activations == "float" else FLIPPED)


@pytest.mark.parametrize(
    ("stored", "leave", "quantized"),
    [
        (awq(32, ignored=("down_proj",)), "down_proj", {"qkv_proj", "o_proj", "gate_up_proj"}),
        (awq(32, ignored=("model.layers.0.mlp",)), "mlp", {"qkv_proj", "o_proj"}),
        (gptq(4, 32, symmetric=True), "o_proj", {"qkv_proj", "gate_up_proj", "down_proj"}),  # only the tensors say so
    ],
)
def test_modules_that_were_left_out_stay_in_floating_point(
    folder: Path, tmp_path: Path, stored: Stored, leave: str, quantized: set[str]
) -> None:
    packed, _ = write(folder, tmp_path, stored, leave)
    assert {str(path[-1]) for path in quantized_weights(packed, 1)} == quantized


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": ["mlp"]}, "mlp"),
        ({"quant_method": "fp8", "weight_block_size": [32, 32], "ignored_layers": ["model.layers.0.mlp"]}, "mlp"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {r"-:.*\.mlp\.": {}}}, "mlp"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"one": {"targets": ["Linear"], "weights": INT4}},
                "ignore": ["lm_head", r"re:.*\.mlp\..*"],
            },
            "mlp",
        ),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else "",
)
def test_ignore_lists_are_read_where_no_tensors_tell(config: dict[str, Any], left_out: str) -> None:
    """As for weights that are filled at random."""
    actual = detect({"quantization_config": config}, None, {}, source="config.json")
    assert actual is not None
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"):
        assert (actual.scheme(module) is None) == (left_out in module), module
    assert actual.scheme("model.layers.10.self_attn.q_proj") is not None


def test_the_closest_target_of_a_mixed_configuration_wins() -> None:
    config = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": INT4, "format": "pack-quantized"},
            "down": {"targets": [r"re:.*down_proj$"], "weights": FP8, "format": "float-quantized"},
            "one": {"targets": ["model.layers.1.mlp.down_proj"], "weights": INT8, "format": "int-quantized"},
        },
    }
    actual = detect({"quantization_config": config}, None, {}, source="config.json")
    assert actual is not None
    modules = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
    schemes = [actual.scheme(module) for module in modules]
    assert [scheme.layout(64).kind for scheme in schemes if scheme is not None] == ["int4", "fp8", "int8"]


def test_every_stored_format_has_a_name_on_the_command_line() -> None:
    assert tuple(STORED) == STORED_QUANTIZATIONS


def test_a_dynamic_rule_changes_the_bits_of_single_modules(folder: Path, tmp_path: Path) -> None:
    four, eight = gptq(4, 32, symmetric=True), gptq(8, 32, symmetric=True)
    packed, _ = write(folder, tmp_path, four, leave="down_proj")
    tensors = tensors_of(packed)
    name = "model.layers.0.mlp.down_proj."
    written, _ = eight.write(tensors.pop(f"{name}weight"))
    tensors |= {name + key: value.contiguous() for key, value in written.items()}
    save_file(tensors, packed / "model.safetensors")
    raw = json.loads((packed / "config.json").read_text())
    raw["quantization_config"]["dynamic"] = {r"+:.*\.down_proj": {"bits": 8}}
    (packed / "config.json").write_text(json.dumps(raw))
    actual = {str(path[-1]): weight.values.dtype.name for path, (weight, _) in quantized_weights(packed, 2).items()}
    assert actual == {"qkv_proj": "uint8", "o_proj": "uint8", "gate_up_proj": "uint8", "down_proj": "int8"}


def test_projections_of_one_input_must_be_quantized_alike(folder: Path, tmp_path: Path) -> None:
    packed, _ = write(folder, tmp_path, gptq(4, 32, symmetric=True), leave="k_proj")
    with pytest.raises(CheckpointError, match=r"quantized alike.*k_proj: not quantized"):
        prepared_and_weights(packed)


def test_projections_of_one_input_must_share_their_order(folder: Path, tmp_path: Path) -> None:
    packed, _ = write(folder, tmp_path, gptq(4, 16, symmetric=True, act_order=True))
    tensors = tensors_of(packed)
    name = "model.layers.0.self_attn.k_proj.g_idx"
    save_file({**tensors, name: tensors[name].flip(0)}, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"k_proj\.g_idx order the same inputs differently"):
        prepared_and_weights(packed)


@pytest.mark.parametrize("wrong", [-1, 4, 2**30])
@pytest.mark.parametrize("stored", [gptq(4, 16, symmetric=True, act_order=True), compressed_act_order(16)])
def test_a_group_that_does_not_exist_is_refused(folder: Path, tmp_path: Path, stored: Stored, wrong: int) -> None:
    """An index beyond its array reads its last entry, without an error."""
    packed, _ = write(folder, tmp_path, stored)
    tensors = tensors_of(packed)
    name = next(
        name for name in tensors if name.endswith(("0.self_attn.o_proj.g_idx", "0.self_attn.o_proj.weight_g_idx"))
    )
    assert int(tensors[name].max()) == 3
    tensors[name][5] = wrong
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"g_idx names group {wrong} but the groups are 0 to 3"):
        prepared_and_weights(packed)


def test_a_missing_scale_is_named(folder: Path, tmp_path: Path) -> None:
    packed, _ = write(folder, tmp_path, gptq(4, 32, symmetric=True))
    tensors = tensors_of(packed)
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.scales is missing"):
        prepared_and_weights(packed)


def test_a_quantized_table_is_refused_and_not_read_without_its_scales(folder: Path, tmp_path: Path) -> None:
    stored = fp8_tensor(static=False)
    packed, _ = write(folder, tmp_path, stored)
    tensors = tensors_of(packed)
    written, _ = stored.write(tensors["lm_head.weight"])
    save_file({**tensors, **{f"lm_head.{key}": value for key, value in written.items()}}, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is quantized, which is supported of linear layers"):
        prepared_and_weights(packed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, r"quantized by 'hqq'; supported are compressed-tensors, awq, gptq, fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}}}, r"format is None; supported are pack"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"},
            r"'gemv'; supported is 'gemm'",
        ),
        ({"quant_method": "gptq", "bits": 3, "group_size": 32}, r"bits is 3; supported are 4, 8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, r"group_size is 0"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"},
            r"'marlin'; supported are",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size \[128\]"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, r"no config_groups"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"a": {}}},
            r"'nvfp4-pack-quantized'; supported are pack-quantized, int-quantized",
        ),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}}, "with sparsity"),
    ],
)
def test_what_is_not_supported_is_refused_with_what_is(
    folder: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    packed, _ = write(folder, tmp_path, gptq(4, 32, symmetric=True), config=config)
    with pytest.raises(CheckpointError, match=f"packed: .*{message}"):
        prepared_and_weights(packed)


def test_quantizing_what_is_quantized_is_refused_and_its_own_name_accepted(folder: Path, tmp_path: Path) -> None:
    packed, _ = write(folder, tmp_path, awq(32))
    prepared_and_weights(packed, "awq")
    with pytest.raises(ConfigError, match=r"'int8' but .* already quantized by awq"):
        prepared_and_weights(packed, "int8")
