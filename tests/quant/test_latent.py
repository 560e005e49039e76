"""Quantized checkpoints of DeepSeek's attention: its products as they are, but the one that is absorbed in floats."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jserve.quant import PackedMatrix, QuantizedWeight
from tests.quant.prefill import prefill_logits, prepared_and_weights
from tests.quant.worlds import EXACT, PROMPTS, float_logits, tensors_of, with_tensors
from tests.quant.writers import Stored, awq, fp8_blocks, gptq
from tests.worlds import make_model

FORMATS = {
    "fp8, blocks": fp8_blocks(24, 16),
    "gptq, act order": gptq(4, 16, symmetric=True, act_order=True),
    "awq": awq(16),
}
DENSE = {
    "num_hidden_layers": 1,
    "first_k_dense_replace": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "float", "DeepseekV3ForCausalLM", **DENSE)


def write(folder: Path, to: Path, stored: Stored) -> tuple[Path, Path]:
    """The model in a stored format, and in floating point what that means."""
    packed: dict[str, torch.Tensor] = {}
    floats: dict[str, torch.Tensor] = {}
    for name, value in tensors_of(folder).items():
        tensors, floats[name] = stored.write(value) if "proj" in name else ({"weight": value}, value)
        packed |= {f"{name.removesuffix('weight')}{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}
    target = to / "packed"
    target.mkdir()
    raw = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, "quantization_config": stored.config}))
    save_file(packed, target / "model.safetensors")
    return target, with_tensors(folder, to / "floats", floats)


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_float_model(folder: Path, tmp_path: Path, name: str) -> None:
    packed, floats = write(folder, tmp_path, FORMATS[name])
    actual = prefill_logits(packed, PROMPTS["middle"], parts=2)
    np.testing.assert_allclose(actual, float_logits(floats, PROMPTS["middle"]), rtol=0, atol=EXACT)


def test_rounding_on_load_leaves_the_absorbed_product_in_floats(folder: Path) -> None:
    prepared, _ = prepared_and_weights(folder, "int8", 1)
    attention = prepared.model.layers[0].self_attn
    assert isinstance(attention.q_b_proj.weight.get_value(), QuantizedWeight | PackedMatrix)
    assert attention.kv_b_proj.key.get_value().dtype == jnp.float32
