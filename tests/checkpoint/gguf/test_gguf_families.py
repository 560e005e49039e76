"""Each family's GGUF file has the tensors and the shape of the model that it was made from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jserve.checkpoint import open_checkpoint
from jserve.config import RopeConfig
from jserve.models.registry import resolve
from tests.checkpoint.gguf import newer_families
from tests.checkpoint.gguf.families_maker import write_family
from tests.worlds import LATENT, make_model

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA = {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "original_max_position_embeddings": 64,
}
DEEPSEEK = {**LATENT, "n_shared_experts": 1}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MSCALE = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, grouped heads": ("llama", "LlamaForCausalLM", {}),
    "llama 4": (
        "llama4",
        "Llama4ForCausalLM",
        {"num_hidden_layers": 4, "num_local_experts": 4, "interleave_moe_layer_step": 2, "head_dim": 16}
        | {"intermediate_size": 24, "intermediate_size_mlp": 40},
    ),
    "mixtral": ("llama", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {}),
    "qwen2 moe": ("qwen2moe", "Qwen2MoeForCausalLM", {**MOE, "shared_expert_intermediate_size": 24}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3 moe": ("qwen3moe", "Qwen3MoeForCausalLM", {**MOE, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": ("olmoe", "OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmo 2": ("olmo2", "Olmo2ForCausalLM", {}),
    "gemma": ("gemma", "GemmaForCausalLM", {"head_dim": 16}),
    "gemma 2": ("gemma2", "Gemma2ForCausalLM", GEMMA),
    "gemma 3": (
        "gemma3",
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi 3": ("phi3", "Phi3ForCausalLM", {"sliding_window": 9}),
    "phi 3, longrope": (
        "phi3",
        "Phi3ForCausalLM",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "sliding_window": None},
    ),
    "phi 4, partial rotary": (
        "phi3",
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75}, "hidden_size": 64}
        | {"sliding_window": None},
    ),
    "gpt-oss": (
        "gpt-oss",
        "GptOssForCausalLM",
        {"num_local_experts": 4, "head_dim": 16, "sliding_window": 5, "rope_parameters": {**YARN, "truncate": False}},
    ),
    "deepseek 2 lite": ("deepseek2", "DeepseekV2ForCausalLM", {**DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek 2, groups": (
        "deepseek2",
        "DeepseekV2ForCausalLM",
        {**DEEPSEEK, "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}
        | {"routed_scaling_factor": 4.0, "rope_parameters": MSCALE},
    ),
    "deepseek 3": (
        "deepseek2",
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "rope_parameters": MSCALE},
    ),
    "granite": (
        "granite",
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 0.6},
    ),
    "smollm 3": ("smollm3", "SmolLM3ForCausalLM", {"num_hidden_layers": 4, "tie_word_embeddings": False}),
    "starcoder 2": ("starcoder2", "Starcoder2ForCausalLM", {"sliding_window": None}),
    "cohere 2": ("cohere2", "Cohere2ForCausalLM", {"num_hidden_layers": 4, "sliding_window": 7, "logit_scale": 0.3}),
    "gpt 2": ("gpt2", "GPT2LMHeadModel", {"num_key_value_heads": 4}),
    "gpt neox": ("gptneox", "GPTNeoXForCausalLM", {"num_key_value_heads": 4, "hidden_size": 64}),
}

FAMILIES |= newer_families.FAMILIES

SILENT = {"eos_token_ids", "bos_token_id", "dtype"}
"""What the files of this test do not say."""
ALWAYS_BIASED = {"qwen2", "qwen2 moe"}
"""Whatever their configuration says of biases."""


@pytest.mark.parametrize("case", FAMILIES)
def test_a_file_says_what_the_model_says(case: str, tmp_path: Path) -> None:
    architecture, family, fields = FAMILIES[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    checkpoint = open_checkpoint(write_family(tmp_path / "m.gguf", folder, architecture))
    served, config = resolve(checkpoint.config(), source=tmp_path)
    original = open_checkpoint(folder)
    expected_class, expected = resolve(original.config(), source=folder)
    assert served is expected_class
    silent = SILENT | ({"attention_bias"} if case in ALWAYS_BIASED else set())
    differing = {
        name: (getattr(config, name), getattr(expected, name))
        for name in expected.__dataclass_fields__
        if name not in silent and not _alike(getattr(config, name), getattr(expected, name))
    }
    assert not differing
    state = load_file(folder / "model.safetensors")
    state = each_expert(state) if case == "llama 4" else state
    state = each_granite_expert(state) if case == "granite moe" else state
    assert {name: info.shape for name, info in checkpoint.tensors().items()} == {
        name: values.shape for name, values in state.items()
    }
    for name, values in state.items():
        np.testing.assert_allclose(checkpoint.read(name), values, atol=1e-6, err_msg=name)
        part = tuple(slice(size // 3, size) for size in values.shape)
        np.testing.assert_allclose(checkpoint.read(name, part), values[part], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", newer_families.TEXT_PARTS)
def test_the_text_part_of_a_model_that_sees_is_that_of_its_family(case: str, tmp_path: Path) -> None:
    architecture, family, fields = newer_families.TEXT_PARTS[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    checkpoint = open_checkpoint(write_family(tmp_path / "m.gguf", folder, architecture))
    (served, config), (plain, expected) = (
        resolve(own.config(), source=tmp_path) for own in (checkpoint, open_checkpoint(folder))
    )
    assert issubclass(served, plain)
    silent = {name: getattr(expected, name) for name in (*SILENT, "architecture", "attention_bias")}
    assert replace(config, **silent) == expected
    state = load_file(folder / "model.safetensors")
    for name, values in state.items():
        np.testing.assert_allclose(checkpoint.read(name), values, atol=1e-6, err_msg=name)


def each_expert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Llama 4's experts, which its folders keep in one tensor with the inputs first, by names of their own."""
    actual: dict[str, np.ndarray] = {}
    for name, values in state.items():
        stem, _, part = name.partition(".experts.")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(part, ())
        for each, of_all in zip(parts, np.split(values, len(parts), axis=-1) if parts else (), strict=True):
            actual |= {f"{stem}.experts.{n}.{each}.weight": matrix.T for n, matrix in enumerate(of_all)}
        if not parts:
            actual[name] = values
    return actual


def each_granite_expert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Granite's experts, which its folders keep in one tensor."""
    actual: dict[str, np.ndarray] = {}
    for name, values in state.items():
        stem, _, part = name.partition("block_sparse_moe.")
        parts = {"input_linear.weight": ("gate_proj", "up_proj"), "output_linear.weight": ("down_proj",)}.get(part)
        if parts is None:
            actual[name] = values
            continue
        for each, of_all in zip(parts, np.split(values, len(parts), axis=1), strict=True):
            experts = {f"{stem}block_sparse_moe.experts.{n}.{each}.weight": matrix for n, matrix in enumerate(of_all)}
            actual |= experts
    return actual


def _alike(one: Any, other: Any) -> bool:
    """Equal, where numbers went through float32 on their way and fields of scaling may have another order."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, RopeConfig) and isinstance(other, RopeConfig):
        if not np.isclose(one.theta, other.theta, rtol=1e-6):
            return False
        one, other = (replace(rope, theta=1.0, scaling=tuple(sorted(rope.scaling))) for rope in (one, other))
    return one == other or (isinstance(one, float) and bool(np.isclose(one, other, rtol=1e-6)))


TRANSFORMERS_READS = ("gemma 2", "gemma 3", "gpt 2", "phi 3", "qwen2 moe", "qwen3 moe", "starcoder 2")


@pytest.mark.slow
@pytest.mark.parametrize("case", TRANSFORMERS_READS)
def test_transformers_reads_the_same_model_from_the_file(case: str, tmp_path: Path) -> None:
    import transformers

    architecture, family, fields = FAMILIES[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    write_family(folder / "m.gguf", folder, architecture)
    config = transformers.AutoConfig.from_pretrained(folder)
    load = getattr(transformers, family).from_pretrained
    expected = load(folder, config=config, dtype="float32").state_dict()
    for name, values in load(folder, gguf_file="m.gguf", config=config, dtype="float32").state_dict().items():
        np.testing.assert_allclose(values.numpy(), expected[name].numpy(), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", ["deepseek 3", "glm 4 moe"])
def test_layers_that_predict_further_tokens_are_passed_over(case: str, tmp_path: Path) -> None:
    """llama.cpp keeps them behind the model's own, and counts them."""
    architecture, family, fields = FAMILIES[case]
    folder = make_model(tmp_path / "hf", family, **fields)
    config = json.loads((folder / "config.json").read_text())
    further = {"blk.2.nextn.eh_proj.weight": np.ones((4, 8), np.float32), "blk.2.attn_q.weight": np.ones((4, 8))}
    path = write_family(tmp_path / "m.gguf", folder, architecture, further=further)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config()["num_hidden_layers"] == config["num_hidden_layers"] == 2
    assert not any(".2." in name.partition("layers")[2][:4] for name in checkpoint.tensors())
