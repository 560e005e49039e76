"""Which family the files of each `general.architecture` are of, and the tensors of the older ones."""

from __future__ import annotations

from jserve.checkpoint.gguf.family import (
    ATTENTION,
    EXPERTS,
    GATED,
    GEMMA3,
    GPT_OSS,
    HEAD_NORMS,
    LATENT,
    LLAMA,
    MIXTRAL_EXPERTS,
    NORMS,
    NORMS_AROUND,
    ROTATED,
    SHARED_EXPERTS,
    TOP,
    Family,
)
from jserve.checkpoint.gguf.joined import join_experts, join_latent
from jserve.checkpoint.gguf.newer_families import NEWER
from jserve.checkpoint.gguf.views import HeadsTogether, OneRow, Transposed

FAMILIES = {
    "llama": Family("LlamaForCausalLM", LLAMA, views=ROTATED),
    "llama4": Family(
        "Llama4ForCausalLM",
        {
            **ATTENTION,
            **NORMS,
            "ffn_gate_inp": "feed_forward.router",
            **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
            **{f"ffn_{part}_exps": f"feed_forward.experts.*.{part}_proj" for part in ("gate", "up", "down")},
            **{f"ffn_{part}_shexp": f"feed_forward.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {
            **ATTENTION,
            **NORMS,
            "ffn_gate_inp": "block_sparse_moe.gate",
            **{f"ffn_{part}_exps": f"block_sparse_moe.experts.*.{name}" for part, name in MIXTRAL_EXPERTS.items()},
        },
        views=ROTATED,
    ),
    "qwen2": Family("Qwen2ForCausalLM", LLAMA),
    "qwen2moe": Family(
        "Qwen2MoeForCausalLM",
        {
            **LLAMA,
            **EXPERTS,
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
        },
        views={"ffn_gate_inp_shexp": lambda heads, kv_heads: OneRow()},
    ),
    "qwen3": Family("Qwen3ForCausalLM", {**LLAMA, **HEAD_NORMS}),
    "qwen3moe": Family("Qwen3MoeForCausalLM", {**LLAMA, **HEAD_NORMS, **EXPERTS}),
    "olmoe": Family("OlmoeForCausalLM", {**LLAMA, **HEAD_NORMS, **EXPERTS}),
    "olmo2": Family("Olmo2ForCausalLM", {**ATTENTION, **GATED, **HEAD_NORMS, **NORMS_AROUND}),
    "gemma": Family("GemmaForCausalLM", LLAMA, offset_norms=True),
    "gemma2": Family("Gemma2ForCausalLM", {**ATTENTION, **GATED, **NORMS_AROUND}, offset_norms=True),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        GEMMA3,
        top={**TOP, "dense.0": "dense.0.linear", "dense.1": "dense.1.linear"},
        offset_norms=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {
            **NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    **dict.fromkeys(
        ("gpt-oss", "gptoss"),
        Family(
            "GptOssForCausalLM",
            GPT_OSS,
            whole={"attn_sinks": "self_attn.sinks"},
            fused_heads=True,
            join=join_experts,
        ),
    ),
    "deepseek2": Family(
        "DeepseekV2ForCausalLM",
        {**LATENT, **GATED, **NORMS, **EXPERTS, **SHARED_EXPERTS},
        whole={"exp_probs_b": "mlp.gate.e_score_correction_bias"},
        latent=True,
        join=join_latent,
    ),
    "granite": Family("GraniteForCausalLM", LLAMA, views=ROTATED),
    "smollm3": Family("SmolLM3ForCausalLM", LLAMA, views=ROTATED),
    "starcoder2": Family(
        "Starcoder2ForCausalLM", {**ATTENTION, **NORMS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "cohere2": Family("Cohere2ForCausalLM", {**ATTENTION, **GATED, "attn_norm": "input_layernorm"}),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layers="transformer.h",
        views=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), lambda heads, kv_heads: Transposed()),
    ),
    "gptneox": Family(
        "GPTNeoXForCausalLM",
        {
            **NORMS,
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        top={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        layers="gpt_neox.layers",
        views={"attn_qkv": lambda heads, kv_heads: HeadsTogether(heads)},
    ),
    **NEWER,
}
"""By `general.architecture`; "mixtral" is "llama" with experts, which is how files have it, "gptoss" is Ollama's."""
