"""The ways in which checkpoints keep experts, beside the one tensor for each that tests/models/test_parity.py reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of

PROMPTS = {"long": list(range(3, 24)), "short": [5]}
FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"num_local_experts": 4},
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
GPT_OSS = {"num_local_experts": 4, "head_dim": 16, "hidden_size": 64, "intermediate_size": 64, "sliding_window": 5}


def check(folder: Path, model: Any, executables: str, **options: Any) -> None:
    core = start_engine(folder, executables, early=True, **options)
    deltas = run(core, PROMPTS, greedy(24))
    for name, prompt in PROMPTS.items():
        assert tokens_of(deltas[name]) == reference_greedy(model, prompt, 24), name


@pytest.mark.parametrize("family", FAMILIES)
def test_all_experts_in_one_tensor(family: str, tmp_path: Path, executables: str) -> None:
    """What transformers 5 has in memory, and writes where it is not asked for the original names."""
    model = reference(make_model(tmp_path / "each", family, **FAMILIES[family]))
    model.save_pretrained(tmp_path / "all", save_original_format=False)
    names = load_file(tmp_path / "all" / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    check(tmp_path / "all", model, executables)


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (2, 2)], ids=lambda split: f"{split[0]} devices in {split[1]}")
def test_experts_in_mxfp4(split: tuple[int, int], tmp_path: Path, executables: str) -> None:
    """Dequantized by transformers in the one folder, by ourselves from the other, with half of the blocks each."""
    plain = make_model(tmp_path / "plain", "GptOssForCausalLM", **GPT_OSS)
    packed = tmp_path / "packed"
    packed.mkdir()
    tensors = load_file(plain / "model.safetensors")
    others = dict(tensors)
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = others.pop(name).shape
        blocks = rng.integers(0, 256, (count, outputs, inputs // 32, 16), np.uint8)
        scales = rng.integers(121, 126, (count, outputs, inputs // 32), np.uint8)
        values = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
        tensors[name] = np.ascontiguousarray(values.numpy())
        others |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    save_file(others, packed / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (packed / "config.json").write_text(json.dumps(config))
    sizes = {"tensor_parallel_size": split[0], "expert_parallel_size": split[1]}
    check(packed, reference(plain), executables, **sizes)


def test_transformers_writes_what_this_file_expects() -> None:
    """The layout of `gate_up_proj` in gpt-oss: inputs before outputs."""
    config = transformers.GptOssConfig(**GPT_OSS, num_hidden_layers=1, vocab_size=8, num_attention_heads=4)
    with torch.device("meta"):
        model = transformers.GptOssForCausalLM(config)
    assert tuple(model.model.layers[0].mlp.experts.gate_up_proj.shape) == (4, 64, 128)
