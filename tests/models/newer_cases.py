"""Tiny models of the newer families, each option unlike its default: `test_parity.py` and others run them."""

from typing import Any

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GROUPED = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
}
GLM = {"head_dim": 16, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ernie 4.5": ("Ernie4_5ForCausalLM", {"head_dim": 16, "use_bias": True}),
    "ernie 4.5 moe": (
        "Ernie4_5_MoeForCausalLM",
        {"num_hidden_layers": 3, "moe_layer_start_index": 1, "moe_layer_end_index": 1, "moe_k": 3}
        | {
            "moe_num_experts": 8,
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 16,
            "tie_word_embeddings": False,
        },
    ),
    "exaone 4": ("Exaone4ForCausalLM", {"sliding_window": 7, "sliding_window_pattern": 2, "rope_parameters": LLAMA3}),
    "exaone 4, no windows": ("Exaone4ForCausalLM", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "exaone moe": (
        "ExaoneMoeForCausalLM",
        {key: value for key, value in GROUPED.items() if key != "n_routed_experts"}
        | {"num_experts": 8, "num_shared_experts": 2, "sliding_window": 7, "sliding_window_pattern": 2},
    ),
    "glm": ("GlmForCausalLM", {**GLM, "attention_bias": True}),
    "glm 4": ("Glm4ForCausalLM", {**GLM, "attention_bias": True}),
    "glm 4 moe": ("Glm4MoeForCausalLM", {**GLM, **GROUPED, "use_qk_norm": True, "n_shared_experts": 2}),
    "glm 4 moe, biases, one group": (
        "Glm4MoeForCausalLM",
        {**GLM, **GROUPED, "n_group": 1, "topk_group": 1, "attention_bias": True, "norm_topk_prob": False},
    ),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", {"head_dim": 16, "rope_parameters": ALPHA}),
    "hunyuan moe": (
        "HunYuanMoEV1ForCausalLM",
        {"num_experts": 6, "moe_topk": 2, "head_dim": 16, "rope_parameters": ALPHA, "attention_bias": True},
    ),
    "minimax m2": (
        "MiniMaxM2ForCausalLM",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 8},
    ),
    "olmo 3": (
        "Olmo3ForCausalLM",
        {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"], "rope_scaling": YARN},
    ),
    "seed oss": ("SeedOssForCausalLM", {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}),
}
