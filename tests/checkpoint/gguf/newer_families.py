"""Tiny models of the newer families for `test_gguf_families.py`: what a GGUF file of each can say."""

from typing import Any

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 0.6}
GROUPED = {"moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
SCALED = {**GROUPED, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1}
HALF = {"head_dim": 16, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}
GEMMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "global_head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 7,
    "vocab_size_per_layer_input": 128,
}
MINISTRAL3 = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
WINDOWS = {"num_hidden_layers": 4, "sliding_window": 7}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "arcee": ("arcee", "ArceeForCausalLM", {}),
    "cohere, normed heads": ("command-r", "CohereForCausalLM", {"use_qk_norm": True, "logit_scale": 0.3}),
    "dots 1": (
        "dots1",
        "Dots1ForCausalLM",
        {**SCALED, "n_shared_experts": 2, "norm_topk_prob": True, "sliding_window": None, "head_dim": 8},
    ),
    "ernie 4.5": ("ernie4_5", "Ernie4_5ForCausalLM", {"head_dim": 16}),
    "ernie 4.5 moe": (
        "ernie4_5-moe",
        "Ernie4_5_MoeForCausalLM",
        {"moe_k": 3, "moe_num_experts": 8, "moe_num_shared_experts": 2, "moe_intermediate_size": 16},
    ),
    "exaone 4": ("exaone4", "Exaone4ForCausalLM", WINDOWS),
    "exaone moe": (
        "exaone-moe",
        "ExaoneMoeForCausalLM",
        {key: value for key, value in SCALED.items() if key != "n_routed_experts"}
        | {"num_experts": 8, "num_shared_experts": 2, **WINDOWS},
    ),
    "gemma 4, small": (
        "gemma4",
        "Gemma4ForCausalLM",
        {**GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8},
    ),
    "gemma 4, experts": (
        "gemma4",
        "Gemma4ForCausalLM",
        {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "glm 4": ("glm4", "Glm4ForCausalLM", {**HALF, "attention_bias": True}),
    "glm 4 moe": ("glm4moe", "Glm4MoeForCausalLM", {**HALF, **SCALED, "use_qk_norm": True, "n_shared_experts": 2}),
    "granite moe": (
        "granitemoe",
        "GraniteMoeForCausalLM",
        {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "hunyuan": ("hunyuan-dense", "HunYuanDenseV1ForCausalLM", {"head_dim": 16, "rope_parameters": ALPHA}),
    "hunyuan moe": (
        "hunyuan-moe",
        "HunYuanMoEV1ForCausalLM",
        {"num_experts": 4, "moe_topk": 2, "head_dim": 16, "rope_parameters": ALPHA},
    ),
    "minimax m2": (
        "minimax-m2",
        "MiniMaxM2ForCausalLM",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 8},
    ),
    "ministral 3": ("mistral3", "Ministral3ForCausalLM", {"head_dim": 16, "rope_parameters": MINISTRAL3}),
    "nemotron": ("nemotron", "NemotronForCausalLM", {"hidden_size": 64}),
    "olmo 3": ("olmo2", "Olmo3ForCausalLM", WINDOWS),
    "seed oss": ("seed_oss", "SeedOssForCausalLM", {"head_dim": 16}),
    "stablelm": ("stablelm", "StableLmForCausalLM", {"hidden_size": 64, "use_qkv_bias": True}),
    "stablelm, side by side, normed heads": (
        "stablelm",
        "StableLmForCausalLM",
        {"use_parallel_residual": True, "qk_layernorm": True, "hidden_size": 64},
    ),
}

TEXT_PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2.5 vl": ("qwen2vl", "Qwen2ForCausalLM", {}),
    "qwen3 vl": ("qwen3vl", "Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3 vl moe": ("qwen3vlmoe", "Qwen3MoeForCausalLM", {**MOE, "head_dim": 16, "norm_topk_prob": True}),
}
"""Models that see, whose text part is a model of the family that is named."""
