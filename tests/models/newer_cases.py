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

COHERE2_MOE = {
    "num_hidden_layers": 3,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "sliding_window": 7,
    "sliding_window_pattern": 2,
    "logit_scale": 0.3,
}
MIXTURE = {"num_local_experts": 6, "num_experts_per_tok": 2}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 0.6}
WINDOWED = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "layer_rope_theta": [100.0, 0, 5000.0],
    "num_hidden_layers": 3,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
}
MISTRAL4_YARN = {**YARN, "rope_theta": 10000.0, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.4}

GEMMA4_ROPES = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 7,
    "vocab_size_per_layer_input": 128,
}

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
    "gemma": ("GemmaForCausalLM", {"head_dim": 16, "num_key_value_heads": 1}),
    "glm 4.7 flash": ("Glm4MoeLiteForCausalLM", {**LATENT, **GROUPED, "n_shared_experts": 2}),
    "phi 2": ("PhiForCausalLM", {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-4}),
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
    "apertus": ("ApertusForCausalLM", {"attention_bias": True, "rope_parameters": LLAMA3}),
    "arcee": ("ArceeForCausalLM", {"mlp_bias": True, "attention_bias": True, "head_dim": 16}),
    "cohere, normed heads": ("CohereForCausalLM", {"use_qk_norm": True, "logit_scale": 0.3, "num_key_value_heads": 1}),
    "cohere 2 moe": (
        "Cohere2MoeForCausalLM",
        {**COHERE2_MOE, "expert_selection_fn": "sigmoid", "num_shared_experts": 2, "first_k_dense_replace": 1}
        | {"prefix_dense_intermediate_size": 40},
    ),
    "cohere 2 moe, shares": (
        "Cohere2MoeForCausalLM",
        {**COHERE2_MOE, "num_shared_experts": 1, "shared_expert_combination_strategy": "sum", "attention_bias": True}
        | {"rms_norm_eps": 1e-5},
    ),
    "dots 1": (
        "Dots1ForCausalLM",
        {**GROUPED, "n_shared_experts": 2, "first_k_dense_replace": 1, "attention_bias": True, "norm_topk_prob": True}
        | {"head_dim": 8, "sliding_window": 7, "max_window_layers": 1},
    ),
    "granite moe": ("GraniteMoeForCausalLM", {**GRANITE, **MIXTURE}),
    "granite moe, shared": ("GraniteMoeSharedForCausalLM", {**GRANITE, **MIXTURE, "shared_intermediate_size": 24}),
    "granite moe, windows": ("GraniteMoeSWAForCausalLM", {**GRANITE, **MIXTURE, **WINDOWED}),
    "granite, windows": ("GraniteSWAForCausalLM", {**GRANITE, **WINDOWED, "attention_bias": True}),
    "mistral 4": (
        "Mistral4ForCausalLM",
        {**LATENT, **GROUPED, "first_k_dense_replace": 1, "rope_parameters": {**MISTRAL4_YARN, "mscale_all_dim": 1.3}},
    ),
    "nemotron": ("NemotronForCausalLM", {"mlp_bias": True, "attention_bias": True, "hidden_size": 64}),
    "phimoe": ("PhimoeForCausalLM", {**MIXTURE, "attention_bias": True, "lm_head_bias": True, "sliding_window": 9}),
    "solar open": ("SolarOpenForCausalLM", {**GROUPED, "n_shared_experts": 2, "attention_bias": True, "head_dim": 16}),
    "stablelm": ("StableLmForCausalLM", {"use_qkv_bias": True, "num_key_value_heads": 1, "hidden_size": 64}),
    "stablelm, side by side, normed heads": (
        "StableLmForCausalLM",
        {"use_parallel_residual": True, "qk_layernorm": True, "hidden_size": 64},
    ),
    "gemma 4, small": (
        "Gemma4ForCausalLM",
        {**GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 8}
        | {"final_logit_softcapping": 3.0, "rope_parameters": GEMMA4_ROPES},
    ),
    "gemma 4, experts": (
        "Gemma4ForCausalLM",
        {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}
        | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
}
