"""Tiny models of which some layers keep a state in place of keys and values."""

from typing import Any

LFM2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_multiple_of": 16,
}
DELTA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rms_norm_eps": 0.01,  # what a random tiny model reads of a state may be nearly 0, and is divided by its size
}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
MAMBA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_expand": 2,
}
GRANITE: dict[str, Any] = {
    **MAMBA,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 0.6,
    "shared_intermediate_size": 24,
}
FALCON: dict[str, Any] = {
    "num_hidden_layers": 2,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_ssm": 48,
    "mamba_d_state": 12,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.7,
    "mlp_multipliers": [0.6, 1.7],
    "key_multiplier": 0.4,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_multipliers": [0.7, 1.2, 0.9, 1.4, 0.5],
    "ssm_in_multiplier": 1.6,
    "ssm_out_multiplier": 0.3,
}
NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 12,
    "conv_kernel": 3,
}
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2ForCausalLM", LFM2),
    "lfm2 moe": (
        "Lfm2MoeForCausalLM",
        {**LFM2, "num_dense_layers": 1, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
        | {"routed_scaling_factor": 1.5},
    ),
    "bamba": ("BambaForCausalLM", {**MAMBA, "mamba_n_groups": 1, "attn_layer_indices": [1], "mamba_proj_bias": True}),
    "falcon h1": ("FalconH1ForCausalLM", FALCON),
    "granite 4": ("GraniteMoeHybridForCausalLM", {**GRANITE, "num_local_experts": 6, "num_experts_per_tok": 3}),
    "nemotron h": ("NemotronHForCausalLM", NEMOTRON),
    "qwen3 next": ("Qwen3NextForCausalLM", {**DELTA, **EXPERTS}),
    "qwen3.5": ("Qwen3_5ForCausalLM", {**DELTA, "linear_conv_kernel_dim": 3}),
    "qwen3.5 moe": ("Qwen3_5MoeForCausalLM", {**DELTA, **EXPERTS}),
}
"""By the names of `test_parity.CASES`."""
