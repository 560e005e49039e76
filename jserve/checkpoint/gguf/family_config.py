"""What a family's configuration has beyond the keys that all GGUF files share.

Where a file is silent, llama.cpp's code knows a number by the model's size (llama-model.cpp, `load_hparams`); so do
these functions. Each is given the checked keys, the common fields and the shapes of tensors by Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jserve.checkpoint.gguf import encoder_families as encoders
from jserve.checkpoint.gguf import newer_config as newer
from jserve.checkpoint.gguf.keys import Keys, shortest_decimal
from jserve.checkpoint.gguf.rope import yarn

Fields = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Further = Callable[[Keys, Fields, Shapes], Fields]

_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62
"""The 27B models scale scores by their width over their heads, the others by the head's size."""

_MAVERICK_EXPERTS = 128
"""Experts of the Llama 4 that does not norm its heads."""
_SOFTMAX, _SIGMOID = 1, 2
"""Numbers that llama.cpp has for gating functions."""
_LOG_FACTOR = 0.1
"""What llama.cpp's converter multiplies `mscale_all_dim` with."""
_DEEPSEEK_GROUPS = {(60, 160): (8, 3), (61, 256): (8, 4)}
"""Groups of experts, and chosen ones, of DeepSeek-V2 and V3 by layers and experts: older files do not say."""


def further_fields(architecture: str, keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """The fields of the architecture's own. Raises CheckpointError where a key is missing or wrong."""
    further = _FURTHER.get(architecture)
    if keys.get("expert_count", 0) and architecture not in _MIXTURES:
        raise keys.wrong("expert_count", f"mixtures of experts of {keys.architecture!r} are not supported from GGUF")
    return {} if further is None else further(keys, common, shapes)


def _mixtral(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {**newer.experts("num_local_experts", keys), "norm_topk_prob": True}


def _olmoe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return newer.experts("num_experts", keys)


def _qwen2_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    shared = shapes.get("model.layers.0.mlp.shared_expert.up_proj.weight", (0,))[0]
    return {
        **newer.experts("num_experts", keys),
        "moe_intermediate_size": newer.expert_size(keys, shapes),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length", default=shared),
        "norm_topk_prob": False,
    }


def _gemma1(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"hidden_act": "gelu_pytorch_tanh"}


def _gemma2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        **_gemma(keys, common, _GEMMA2_27B_LAYERS),
        "attn_logit_softcapping": keys.decimal("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": keys.decimal("final_logit_softcapping", default=30.0),
    }


def _gemma3(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    final = keys.get("final_logit_softcapping")
    return {
        **_gemma(keys, common, _GEMMA3_27B_LAYERS),
        "rope_theta": keys.decimal("rope.freq_base", default=1_000_000.0),
        "rope_local_base_freq": keys.decimal("rope.freq_base_swa", default=10_000.0),
        "final_logit_softcapping": keys.decimal("final_logit_softcapping", default=1.0) if final else None,
        **_both_ways(keys),
    }


def _both_ways(keys: Keys) -> Fields:
    """A Gemma 3 that pools is EmbeddingGemma; Ollama's files say no more of it."""
    return {"use_bidirectional_attention": True} if keys.get("pooling_type") else {}


def _gemma(keys: Keys, common: Fields, layers_of_27b: int) -> Fields:
    is_27b = common["num_hidden_layers"] == layers_of_27b
    width = common["hidden_size"] / common["num_attention_heads"] if is_27b else common["head_dim"]
    window = newer.window(keys)
    return {"query_pre_attn_scalar": width, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": window}


def _phi3(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", default=common["max_position_embeddings"]
        ),
        "sliding_window": newer.window(keys),
        **newer.partial(keys, common),
    }


def _starcoder2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": common["rms_norm_eps"],
        "use_bias": common["attention_bias"],
        "sliding_window": newer.window(keys),
    }


def _cohere2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "layer_norm_eps": common["rms_norm_eps"],
        "logit_scale": keys.decimal("logit_scale", default=0.0625),
        "sliding_window": newer.window(keys),
    }


def _gpt2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "n_embd": common["hidden_size"],
        "n_head": common["num_attention_heads"],
        "n_layer": common["num_hidden_layers"],
        "n_positions": common["max_position_embeddings"],
        "n_inner": common["intermediate_size"],
        "layer_norm_epsilon": common["rms_norm_eps"],
        "activation_function": "gelu_new",
    }


def _gpt_neox(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "hidden_act": "gelu",
        "attention_bias": "gpt_neox.layers.0.attention.query_key_value.bias" in shapes,
        "layer_norm_eps": common["rms_norm_eps"],
        "rotary_emb_base": common["rope_theta"],
        "rotary_pct": newer.partial(keys, common)["partial_rotary_factor"],
        "use_parallel_residual": bool(keys.get("use_parallel_residual", True)),
        **newer.partial(keys, common),
    }


def _smollm3(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"no_rope_layer_interval": 4}


def _gpt_oss(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """Ollama's files do not name YaRN. Its corrections are not rounded, which no file says."""
    factor = keys.decimal("rope.scaling.factor", default=1.0)
    packed = any(name.endswith("_blocks") for name in shapes)
    return {
        **newer.experts("num_local_experts", keys),
        "rope_theta": keys.decimal("rope.freq_base", default=150_000.0),
        "rope_scaling": {**yarn(keys, factor), "truncate": False} if factor != 1.0 else {"rope_type": "default"},
        "sliding_window": keys.integer("attention.sliding_window", default=128),
        **({"quantization_config": {"quant_method": "mxfp4"}} if packed else {}),
    }


def _llama4(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """Files say nothing of chunks and temperature, and of the norms of heads only by how many experts there are."""
    if keys.get("attention.sliding_window") == 0:
        raise keys.wrong("attention.sliding_window", "models of this architecture without chunks are not supported")
    experts = newer.experts("num_local_experts", keys)
    return {
        **experts,
        "attention_chunk_size": 8192,
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": common["intermediate_size"],
        "interleave_moe_layer_step": keys.integer("interleave_moe_layer_step", default=1),
        "no_rope_layer_interval": 4,
        "use_qk_norm": experts["num_local_experts"] != _MAVERICK_EXPERTS,
    }


def _deepseek(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """DeepSeek-V2, and where experts are scored by a sigmoid V3."""
    if keys.get("attention.temperature_scale"):
        raise keys.wrong("attention.temperature_scale", "scores that depend on positions are not supported")
    if keys.get("expert_gating_func", _SOFTMAX) not in (_SOFTMAX, _SIGMOID):
        raise keys.wrong("expert_gating_func", "supported are 1 (softmax) and 2 (sigmoid)")
    is_v3 = keys.get("expert_gating_func") == _SIGMOID
    rotated = keys.integer("rope.dimension_count")
    key_dim = keys.integer("attention.key_length_mla", default=keys.integer("attention.key_length")) - rotated
    if key_dim < 1:
        raise keys.wrong("rope.dimension_count", "must be less than the dimensions of a key")
    experts = keys.integer("expert_count")
    silent = _DEEPSEEK_GROUPS.get((common["num_hidden_layers"], experts), (1, 1))
    groups = keys.integer("expert_group_count", default=silent[0])
    return {
        **newer.experts("n_routed_experts", keys),
        "architectures": ["DeepseekV3ForCausalLM" if is_v3 else "DeepseekV2ForCausalLM"],
        "scoring_func": "sigmoid" if is_v3 else "softmax",
        "topk_method": "noaux_tc" if is_v3 else "group_limited_greedy" if groups > 1 else "greedy",
        "n_group": groups,
        "topk_group": keys.integer("expert_group_used_count", default=silent[1]),
        "norm_topk_prob": bool(keys.get("expert_weights_norm", False)),
        "routed_scaling_factor": keys.decimal("expert_weights_scale", default=1.0),
        "n_shared_experts": keys.count("expert_shared_count"),
        "first_k_dense_replace": keys.count("leading_dense_block_count"),
        "moe_intermediate_size": newer.expert_size(keys, shapes),
        "kv_lora_rank": keys.integer("attention.kv_lora_rank"),
        "q_lora_rank": keys.count("attention.q_lora_rank") or None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_dim,
        "v_head_dim": keys.integer("attention.value_length_mla", default=keys.integer("attention.value_length")),
        "rope_scaling": _deepseek_rope(keys, common["rope_scaling"]),
    }


def _deepseek_rope(keys: Keys, scaling: Fields | None) -> Fields | None:
    """With the factor on the scores. Published models give the same for that on the rotated part, so files have one."""
    if scaling is None or not keys.get("rope.scaling.yarn_log_multiplier"):
        return scaling
    scale = shortest_decimal(keys.decimal("rope.scaling.yarn_log_multiplier", default=1.0) / _LOG_FACTOR)
    return {**scaling, "mscale": scale, "mscale_all_dim": scale}


_MIXTURES = frozenset(
    {
        "DeepseekV2ForCausalLM",
        "Dots1ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "ExaoneMoeForCausalLM",
        "Gemma4ForCausalLM",
        "Glm4MoeForCausalLM",
        "GptOssForCausalLM",
        "GraniteMoeForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "Llama4ForCausalLM",
        "MiniMaxM2ForCausalLM",
        "MixtralForCausalLM",
        "OlmoeForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3VLMoeForConditionalGeneration",
    }
)
_FURTHER: Mapping[str, Further] = {
    "ArceeForCausalLM": newer.arcee,
    "BertModel": encoders.bert,
    "CohereForCausalLM": newer.cohere,
    "Cohere2ForCausalLM": _cohere2,
    "DeepseekV2ForCausalLM": _deepseek,
    "Dots1ForCausalLM": newer.dots1,
    "Ernie4_5ForCausalLM": newer.ernie,
    "Ernie4_5_MoeForCausalLM": newer.ernie_moe,
    "Exaone4ForCausalLM": newer.exaone4,
    "ExaoneMoeForCausalLM": newer.exaone_moe,
    "EuroBertModel": encoders.eurobert,
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": _gpt_neox,
    "GemmaForCausalLM": _gemma1,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3TextModel": _gemma3,
    "Gemma4ForCausalLM": newer.gemma4,
    "Glm4ForCausalLM": newer.glm4,
    "Glm4MoeForCausalLM": newer.glm4_moe,
    "GptOssForCausalLM": _gpt_oss,
    "GraniteForCausalLM": newer.granite,
    "GraniteMoeForCausalLM": newer.granite_moe,
    "HunYuanMoEV1ForCausalLM": newer.hunyuan_moe,
    "JinaEmbeddingsV3Model": encoders.jina_bert_v3,
    "Llama4ForCausalLM": _llama4,
    "MiniMaxM2ForCausalLM": newer.minimax_m2,
    "Ministral3ForCausalLM": newer.ministral3,
    "MixtralForCausalLM": _mixtral,
    "ModernBertModel": encoders.modern_bert,
    "NomicBertModel": encoders.nomic_bert,
    "NemotronForCausalLM": newer.nemotron,
    "Olmo2ForCausalLM": newer.olmo2,
    "OlmoeForCausalLM": _olmoe,
    "Phi3ForCausalLM": _phi3,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen3MoeForCausalLM": newer.qwen3_moe,
    "Qwen3VLMoeForConditionalGeneration": newer.qwen3_moe,
    "SeedOssForCausalLM": newer.seed_oss,
    "SmolLM3ForCausalLM": _smollm3,
    "StableLmForCausalLM": newer.stablelm,
    "Starcoder2ForCausalLM": _starcoder2,
}
