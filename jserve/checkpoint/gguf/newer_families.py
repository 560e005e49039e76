"""The tensors of the newer families, whose other half is `newer_config.py`."""

from __future__ import annotations

from jserve.checkpoint.gguf.family import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    GATED,
    HEAD_NORMS,
    LATER_HEAD_NORMS,
    LLAMA,
    MIXTRAL_EXPERTS,
    NORMS,
    NORMS_AFTER,
    NORMS_AROUND,
    ROTATED,
    SECOND_NORM,
    SHARED_EXPERTS,
    TOP,
    WITH_SHARED,
    Family,
)
from jserve.checkpoint.gguf.views import OneRow

NEWER = {
    "arcee": Family(
        "ArceeForCausalLM",
        {**ATTENTION, **NORMS, "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
        views=ROTATED,
    ),
    "command-r": Family("CohereForCausalLM", {**ATTENTION, **GATED, **HEAD_NORMS, "attn_norm": "input_layernorm"}),
    "dots1": Family(
        "Dots1ForCausalLM",
        {**WITH_SHARED, **HEAD_NORMS},
        whole={"exp_probs_b": f"mlp.gate.{CORRECTION}"},
    ),
    "ernie4_5": Family("Ernie4_5ForCausalLM", LLAMA),
    "ernie4_5-moe": Family(
        "Ernie4_5_MoeForCausalLM",
        WITH_SHARED,
        whole={"exp_probs_b": f"mlp.moe_statics.{CORRECTION}"},
        views={"exp_probs_b": lambda heads, kv_heads: OneRow()},
    ),
    "exaone4": Family("Exaone4ForCausalLM", {**ATTENTION, **GATED, **HEAD_NORMS, **NORMS_AFTER}),
    "exaone-moe": Family(
        "ExaoneMoeForCausalLM", {**WITH_SHARED, **HEAD_NORMS}, whole={"exp_probs_b": f"mlp.{CORRECTION}"}
    ),
    "gemma4": Family(
        "Gemma4ForCausalLM",
        {
            **ATTENTION,
            **GATED,
            **HEAD_NORMS,
            **NORMS_AROUND,
            "ffn_gate_inp": "router.proj",
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        },
        top={
            **TOP,
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
        whole={
            "layer_output_scale": "layer_scalar",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "ffn_gate_up_exps": "experts.gate_up_proj",
            "ffn_down_exps": "experts.down_proj",
        },
        by_layer=True,
    ),
    "glm4": Family(
        "Glm4ForCausalLM",
        {
            **ATTENTION,
            **NORMS,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "glm4moe": Family(
        "Glm4MoeForCausalLM",
        {**ATTENTION, **GATED, **EXPERTS, **SHARED_EXPERTS, **HEAD_NORMS, **SECOND_NORM},
        whole={"exp_probs_b": f"mlp.gate.{CORRECTION}"},
    ),
    "granitemoe": Family(
        "GraniteMoeForCausalLM",
        {
            **ATTENTION,
            **NORMS,
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            **{f"ffn_{part}_exps": f"block_sparse_moe.experts.*.{part}_proj" for part in ("gate", "up", "down")},
        },
        views=ROTATED,
    ),
    "hunyuan-dense": Family("HunYuanDenseV1ForCausalLM", {**LLAMA, **LATER_HEAD_NORMS}),
    "hunyuan-moe": Family(
        "HunYuanMoEV1ForCausalLM",
        {
            **LLAMA,
            **EXPERTS,
            **LATER_HEAD_NORMS,
            "ffn_gate_inp": "mlp.gate.wg",
            **{f"ffn_{part}_shexp": f"mlp.shared_mlp.{part}_proj" for part in ("gate", "up", "down")},
        },
    ),
    "minimax-m2": Family(
        "MiniMaxM2ForCausalLM",
        {
            **ATTENTION,
            **NORMS,
            **HEAD_NORMS,
            "ffn_gate_inp": "block_sparse_moe.gate",
            **{f"ffn_{part}_exps": f"block_sparse_moe.experts.*.{name}" for part, name in MIXTRAL_EXPERTS.items()},
        },
        whole={"exp_probs_b": f"block_sparse_moe.{CORRECTION}"},
    ),
    "mistral3": Family("Ministral3ForCausalLM", LLAMA, views=ROTATED),
    "nemotron": Family(
        "NemotronForCausalLM",
        {**ATTENTION, **NORMS, "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
        offset_norms=True,
    ),
    "qwen2vl": Family("Qwen2_5_VLForConditionalGeneration", LLAMA),
    "qwen3vl": Family("Qwen3VLForConditionalGeneration", {**LLAMA, **HEAD_NORMS}),
    "qwen3vlmoe": Family("Qwen3VLMoeForConditionalGeneration", {**LLAMA, **HEAD_NORMS, **EXPERTS}),
    "seed_oss": Family("SeedOssForCausalLM", {**ATTENTION, **GATED, **SECOND_NORM}),
    "stablelm": Family(
        "StableLmForCausalLM",
        {
            **LLAMA,
            "attn_q_norm": "self_attn.q_layernorm.norms.*",
            "attn_k_norm": "self_attn.k_layernorm.norms.*",
        },
    ),
}
