"""Every family against transformers: float32, tiny random models, logits and 64 greedy tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jserve.runtime import native, prepare
from tests.models import newer_cases
from tests.models.hybrid_cases import HYBRIDS, LFM2
from tests.worlds import (
    LATENT,
    greedy,
    make_model,
    reference,
    reference_greedy,
    reference_logits,
    run,
    start_engine,
    tokens_of,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MINISTRAL3 = {
    "head_dim": 8,
    "rope_parameters": {**YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.4},
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}

GEMMA = {"head_dim": 16, "sliding_window": 7}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.6,
}
APART = {"num_key_value_heads": 4}
NEOX = {**APART, "hidden_size": 64}

LLAMA4 = {
    "attention_chunk_size": 8,
    "attn_scale": 0.4,
    "floor_scale": 8,
    "head_dim": 8,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "no_rope_layer_interval": 2,
    "num_local_experts": 4,
    "rope_parameters": LLAMA3,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
GPT_OSS = {"num_local_experts": 6, "head_dim": 16, "sliding_window": 5, "swiglu_limit": 0.5, "rope_parameters": YARN}
MSCALE = {**YARN, "mscale": 0.8, "mscale_all_dim": 1.3, "beta_fast": 32, "beta_slow": 1}
QWEN_MOE = {**MOE, "shared_expert_intermediate_size": 24}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, all heads apart": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama, one KV head, tied": ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, odd vocabulary and head size": ("LlamaForCausalLM", {"vocab_size": 131, "head_dim": 24}),
    "llama, nine heads": (
        "LlamaForCausalLM",
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "llama, biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 rope": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "ministral 3, past the length before yarn": ("Ministral3ForCausalLM", MINISTRAL3),
    "llama, linear rope": ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
    "gpt-oss": ("GptOssForCausalLM", {**GPT_OSS, "intermediate_size": 24}),
    "granite": ("GraniteForCausalLM", GRANITE),
    "llama 4": ("Llama4ForCausalLM", LLAMA4),
    "llama 4, two experts of a token, a dense layer": (
        "Llama4ForCausalLM",
        {**LLAMA4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "use_qk_norm": False, "moe_layers": [1]}
        | {"attn_temperature_tuning": False, "attention_bias": True, "no_rope_layers": [0, 1]}
        | {"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}},
    ),
    "mistral, sliding window": ("MistralForCausalLM", {"sliding_window": 7}),
    "olmo 2, biases": ("Olmo2ForCausalLM", {"attention_bias": True}),
    "olmo 2, one KV head": ("Olmo2ForCausalLM", {"num_key_value_heads": 1}),
    "phi 3, sliding window": ("Phi3ForCausalLM", {"sliding_window": 9}),
    "phi 4, partial rotary, tied": (
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75}, "tie_word_embeddings": True}
        | {"hidden_size": 64},
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2, tied, some layers windowed": (
        "Qwen2ForCausalLM",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    "cohere 2": (
        "Cohere2ForCausalLM",
        {"sliding_window": 7, "sliding_window_pattern": 2, "logit_scale": 0.3},
    ),
    "cohere 2, biases": (
        "Cohere2ForCausalLM",
        {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True},
    ),
    "deepseek 2, groups, yarn": (
        "DeepseekV2ForCausalLM",
        {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0}
        | {"q_lora_rank": 20, "n_shared_experts": 2, "rope_parameters": MSCALE},
    ),
    "deepseek 2 lite": ("DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": None, "attention_bias": True}),
    "deepseek 3": (
        "DeepseekV3ForCausalLM",
        {**LATENT, "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "rope_parameters": MSCALE},
    ),
    "gpt 2": ("GPT2LMHeadModel", APART),
    "gpt 2, own inner size": ("GPT2LMHeadModel", {**APART, "n_inner": 40, "vocab_size": 131}),
    "gpt neox": ("GPTNeoXForCausalLM", NEOX),
    "gpt neox, one after the other, tied": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 500.0}},
    ),
    "gemma 2": ("Gemma2ForCausalLM", {**GEMMA, "query_pre_attn_scalar": 24}),
    "gemma 2, caps that bite": (
        "Gemma2ForCausalLM",
        {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "num_key_value_heads": 1},
    ),
    "gemma 3": ("Gemma3ForCausalLM", {**GEMMA, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24}),
    "gemma 3, scaled global rope": (
        "Gemma3ForCausalLM",
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3, biases": ("Qwen3ForCausalLM", {"head_dim": 8, "attention_bias": True}),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24}),
    "qwen2 moe, one layer dense": ("Qwen2MoeForCausalLM", {**QWEN_MOE, "decoder_sparse_step": 2}),
    "qwen2 moe, normalised": ("Qwen2MoeForCausalLM", {**QWEN_MOE, "norm_topk_prob": True}),
    "qwen3 moe": ("Qwen3MoeForCausalLM", {**MOE, "head_dim": 16, "mlp_only_layers": [1]}),
    "smollm 3": ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
    "smollm 3, layers without rope named": ("SmolLM3ForCausalLM", {"no_rope_layers": [0, 1], "attention_bias": True}),
    **HYBRIDS,
    "lfm2, biases, a window of four": ("Lfm2ForCausalLM", {**LFM2, "conv_bias": True, "conv_L_cache": 4}),
    "starcoder 2": ("Starcoder2ForCausalLM", {}),
    "starcoder 2, no biases, sliding window": (
        "Starcoder2ForCausalLM",
        {"use_bias": False, "sliding_window": 9, "tie_word_embeddings": False},
    ),
}

CASES |= newer_cases.CASES

ON_TWO_DEVICES = {
    "deepseek 2 lite",
    "deepseek 3",
    "gemma 3, scaled global rope",
    "gpt 2",
    "gpt neox",
    "gpt-oss",
    "bamba",
    "lfm2",
    "qwen3.5",
    "olmo 2, one KV head",
    "olmoe",
    "phi 3, sliding window",
    "qwen2 moe, normalised",
}
"""Tensor parallel in the default run. `slow` runs every case so."""

SECOND_FORMS = {
    *newer_cases.CASES,
    "cohere 2, biases",
    "gemma 2",
    "gemma 3",
    "gpt 2, own inner size",
    "gpt neox, one after the other, tied",
    "granite 4",
    "lfm2 moe",
    "lfm2, biases, a window of four",
    "llama, all heads apart",
    "llama, biases",
    "llama, linear rope",
    "llama, nine heads",
    "olmo 2, biases",
    "phi 4, partial rotary, tied",
    "qwen2",
    "qwen2 moe, one layer dense",
    "qwen3",
    "qwen3.5 moe",
    "smollm 3",
    "starcoder 2, no biases, sliding window",
}
"""Cases of families that another case, or `test_newer_families.py`, covers in the default run; these are in the slow
one.
"""

PROMPTS = {"long": list(range(3, 44)), "short": [5], "middle": [9, 8, 7, 6, 5, 4, 3, 9, 8, 7]}

LOGIT_TOLERANCE = 2e-4
"""Log-probabilities of logits of about 10, summed in another order in float32 over two layers."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SECOND_FORMS else ()) for case in CASES]
)
def test_logprobs_and_greedy_tokens_equal_transformers(case: str, tmp_path: Path, executables: str) -> None:
    check_parity(case, tmp_path, executables, devices=2 if case in ON_TWO_DEVICES else 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in ON_TWO_DEVICES])
def test_two_devices_equal_transformers(case: str, tmp_path: Path, executables: str) -> None:
    check_parity(case, tmp_path, executables, devices=2 if fits_two(case) else 3)


def fits_two(case: str) -> bool:
    """Not nine heads of three KV heads."""
    return case != "llama, nine heads"


def check_parity(case: str, folder: Path, executables: str, devices: int) -> None:
    """Prompts in chunks beside decodes, then two rows that decode, then a prompt that is in the cache."""
    architecture, fields = CASES[case]
    make_model(folder, architecture, **fields)
    model = reference(folder)
    core = start_engine(folder, executables, early=True, tensor_parallel_size=devices)
    for names in (list(PROMPTS), ["long", "middle"]):
        prompts = {name: PROMPTS[name] for name in names}
        deltas = run(core, prompts, greedy(64, logprobs=20))
        assert [deltas[name][0].num_cached_tokens > 0 for name in names] == [len(names) == 2] * len(names)
        for name, prompt in prompts.items():
            tokens = tokens_of(deltas[name])
            assert tokens == reference_greedy(model, prompt, 64, guess=tokens), name
            expected = reference_logits(model, prompt + tokens)[len(prompt) - 1 : -1].astype(np.float64)
            expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
            for delta, row in zip(deltas[name], expected, strict=True):
                assert delta.logprobs is not None
                actual = delta.logprobs[0]
                np.testing.assert_allclose(actual.logprob, row[delta.token_ids[0]], atol=LOGIT_TOLERANCE)
                np.testing.assert_allclose(actual.top_logprobs, row[actual.top_ids], atol=LOGIT_TOLERANCE)
                np.testing.assert_allclose(actual.top_logprobs, np.sort(row)[::-1][:20], atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize(
    ("case", "has_native"),
    [
        ("llama, odd vocabulary and head size", True),
        ("llama, odd vocabulary and head size", False),
        ("qwen2, tied, some layers windowed", True),
        ("mixtral", True),
        pytest.param("mixtral", False, marks=pytest.mark.slow),
        pytest.param("deepseek 3", True, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_checkpoints_are_computed_in_float32_at_every_batch_size(
    case: str, has_native: bool, tmp_path: Path, executables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are the bits of bfloat16; without native products those of one or two rows, and more of them multiply
    float32 weights: the numbers are the same.
    """
    if not has_native:
        monkeypatch.setattr(native, "load_kernel", lambda *_: False)
    architecture, fields = CASES[case]
    folder = make_model(tmp_path, architecture, dtype=torch.bfloat16, **fields)
    model = reference(folder)
    core = start_engine(folder, executables)
    small_batch, weights = core.runner.small_batch_weights, core.runner.weights
    assert any(array.dtype == np.uint16 for array in (weights if has_native else small_batch))
    assert has_native != bool(small_batch)
    expected = {name: reference_greedy(model, prompt, 64) for name, prompt in PROMPTS.items()}
    batches = [["long"], ["long", "middle"], list(PROMPTS)]
    for names in batches:
        deltas = run(core, {name: PROMPTS[name] for name in names}, greedy(64))
        assert {name: tokens_of(deltas[name]) for name in names} == {name: expected[name] for name in names}


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_on_any_cpu_says_alone_what_it_says_in_a_batch(
    has_instructions: bool, tmp_path: Path, executables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU cannot multiply bfloat16, native products do it in every step; else only in those of few tokens."""
    monkeypatch.setattr(prepare, "multiplies_bfloat16", lambda: has_instructions)
    folder = make_model(tmp_path, "LlamaForCausalLM", dtype=torch.bfloat16)
    core = start_engine(folder, executables, dtype="bfloat16")
    assert bool(core.runner.small_batch_weights) == has_instructions
    is_narrow = [array.dtype == np.uint16 for array in core.runner.small_batch_weights or core.runner.weights]
    assert any(is_narrow)
    batch = run(core, PROMPTS, greedy(32))
    for name, prompt in PROMPTS.items():
        alone = tokens_of(run(core, {name: prompt}, greedy(32))[name])
        assert len(alone) == 32
        if not has_instructions:
            assert alone == tokens_of(batch[name])
