"""What the configurations of the newer families have beyond the keys that all GGUF files share.

As in `family_config.py`, whose table names these functions. Sources: the classes of llama.cpp's converter, and
`load_hparams` of its llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jserve.checkpoint.gguf.keys import Keys, shortest_decimal

Fields = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_SOFTMAX, _SIGMOID = 1, 2
"""Numbers that llama.cpp has for gating functions."""
_SWA_PERIOD = 4
"""One of so many layers sees everything, where files of OLMo 3 and EXAONE 4 do not say which."""


def experts(count: str, keys: Keys) -> Fields:
    return {count: keys.integer("expert_count"), "num_experts_per_tok": keys.integer("expert_used_count")}


def expert_size(keys: Keys, shapes: Shapes) -> int:
    stored = shapes.get("model.layers.0.mlp.experts.0.up_proj.weight", (0,))[0]
    return keys.integer("expert_feed_forward_length", default=stored)


def window(keys: Keys) -> int | None:
    """None where it is missing or 0."""
    return keys.integer("attention.sliding_window") if keys.get("attention.sliding_window") else None


def partial(keys: Keys, common: Fields) -> Fields:
    rotary = keys.integer("rope.dimension_count", default=common["head_dim"])
    return {"partial_rotary_factor": rotary / common["head_dim"]}


def grouped(keys: Keys, shapes: Shapes) -> Fields:
    """DeepSeek-V3's mixture, as other families have it."""
    if keys.get("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise keys.wrong("expert_gating_func", "supported is 2 (sigmoid)")
    return {
        **experts("n_routed_experts", keys),
        "n_group": keys.integer("expert_group_count", default=1),
        "topk_group": keys.integer("expert_group_used_count", default=1),
        "norm_topk_prob": bool(keys.get("expert_weights_norm", False)),
        "routed_scaling_factor": keys.decimal("expert_weights_scale", default=1.0),
        "n_shared_experts": keys.count("expert_shared_count"),
        "first_k_dense_replace": keys.count("leading_dense_block_count"),
        "moe_intermediate_size": expert_size(keys, shapes),
    }


def windows(keys: Keys, common: Fields) -> Fields:
    """Which layers have one. Without a window none has."""
    size, layers = window(keys), common["num_hidden_layers"]
    if size is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    pattern = keys.get("attention.sliding_window_pattern", _SWA_PERIOD)
    if isinstance(pattern, int):
        pattern = [bool((layer + 1) % pattern) for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise keys.wrong("attention.sliding_window_pattern", f"must be a period, or true or false for each of {layers}")
    kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    return {"sliding_window": size, "layer_types": kinds}


def arcee(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"hidden_act": "relu2"}


def cohere(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "layer_norm_eps": common["rms_norm_eps"],
        "logit_scale": keys.decimal("logit_scale", default=0.0625),
        "use_qk_norm": "model.layers.0.self_attn.q_norm.weight" in shapes,
    }


def dots1(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {**grouped(keys, shapes), "sliding_window": None}


def ernie(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"use_bias": common["attention_bias"]}


def ernie_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "moe_num_experts": keys.integer("expert_count"),
        "moe_k": keys.integer("expert_used_count"),
        "moe_num_shared_experts": keys.count("expert_shared_count"),
        "moe_layer_start_index": keys.count("leading_dense_block_count"),
        "moe_layer_interval": keys.integer("interleave_moe_layer_step", default=1),
        "moe_intermediate_size": expert_size(keys, shapes),
    }


def exaone4(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return windows(keys, common)


def exaone_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    mixture = grouped(keys, shapes)
    named = {"num_experts": mixture.pop("n_routed_experts"), "num_shared_experts": mixture.pop("n_shared_experts")}
    return {**mixture, **named, **windows(keys, common)}


def gemma4(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """Keys are of the layers without a window where others are named with "swa"; lists have one for each layer."""
    kinds = windows(keys, common)
    full = [layer for layer, kind in enumerate(kinds["layer_types"]) if kind == "full_attention"]
    if not full:
        raise keys.wrong("attention.sliding_window_pattern", "must leave a layer without a window")
    kv_heads, inner = keys.get("attention.head_count_kv"), keys.get("feed_forward_length")
    narrow = min(inner) if isinstance(inner, list) else inner
    has_experts = bool(keys.get("expert_count", 0))
    further = {
        **kinds,
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": keys.integer("attention.key_length_swa", default=common["head_dim"]),
        "global_head_dim": common["head_dim"],
        "num_global_key_value_heads": kv_heads[full[0]] if isinstance(kv_heads, list) else None,
        "attention_k_eq_v": f"model.layers.{full[0]}.self_attn.v_proj.weight" not in shapes,
        "num_kv_shared_layers": keys.count("attention.shared_kv_layers"),
        "intermediate_size": narrow,
        "use_double_wide_mlp": narrow != inner and isinstance(inner, list),
        "hidden_size_per_layer_input": keys.count("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": shapes.get("model.embed_tokens_per_layer.weight", (common["vocab_size"],))[0],
        "enable_moe_block": has_experts,
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "rope_scaling": None,
        "rope_parameters": _gemma4_ropes(keys, common),
    }
    if has_experts:
        further |= {
            "num_experts": keys.integer("expert_count"),
            "top_k_experts": keys.integer("expert_used_count"),
            "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        }
    return further


def _gemma4_ropes(keys: Keys, common: Fields) -> Fields:
    """The factors of the whole rotary embedding are 1 for pairs that turn, and very large for the others."""
    scaling = common["rope_scaling"] or {}
    factors = scaling.get("factors", [1.0])
    turning = sum(factor == 1.0 for factor in factors) / len(factors)
    whole = {"rope_type": "proportional", "partial_rotary_factor": turning, "rope_theta": common["rope_theta"]}
    theta = keys.decimal("rope.freq_base_swa", default=10_000.0)
    return {"full_attention": whole, "sliding_attention": {"rope_type": "default", "rope_theta": theta}}


def glm4(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return partial(keys, common)


def glm4_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    has_norm = "model.layers.0.self_attn.q_norm.weight" in shapes
    return {**grouped(keys, shapes), **partial(keys, common), "use_qk_norm": has_norm}


def granite(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "attention_multiplier": keys.decimal("attention.scale", default=common["head_dim"] ** -0.5),
        "embedding_multiplier": keys.decimal("embedding_scale", default=1.0),
        "residual_multiplier": keys.decimal("residual_scale", default=1.0),
        "logits_scaling": keys.decimal("logit_scale", default=1.0),
    }


def granite_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {**granite(keys, common, shapes), **experts("num_local_experts", keys)}


def hunyuan_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    size = expert_size(keys, shapes)
    if size != common["intermediate_size"]:
        raise keys.wrong("expert_feed_forward_length", f"must be feed_forward_length, {common['intermediate_size']}")
    return {"num_experts": keys.integer("expert_count"), "moe_topk": keys.integer("expert_used_count")}


def minimax_m2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    inner = keys.integer("expert_feed_forward_length", default=common["intermediate_size"])
    return {**experts("num_local_experts", keys), "intermediate_size": inner, **partial(keys, common)}


def ministral3(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """Files name YaRN's factor on the scores, which is as large as that on the rotated part, and leave out others."""
    scaling = dict(common["rope_scaling"] or {})
    if scale := keys.get("rope.scaling.yarn_log_multiplier"):
        scaling |= {"mscale": shortest_decimal(scale), "mscale_all_dim": shortest_decimal(scale)}
    if keys.get("attention.temperature_scale"):
        scaling["llama_4_scaling_beta"] = keys.decimal("attention.temperature_scale", default=0.1)
    return {"rope_scaling": None, "rope_parameters": {**scaling, "rope_theta": common["rope_theta"]}}


def nemotron(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"hidden_act": "relu2", "norm_eps": common["rms_norm_eps"], **partial(keys, common)}


def olmo2(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    """With a window it is OLMo 3."""
    if window(keys) is None:
        return {}
    return {"architectures": ["Olmo3ForCausalLM"], **windows(keys, common)}


def qwen3_moe(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        **experts("num_experts", keys),
        "moe_intermediate_size": expert_size(keys, shapes),
        "norm_topk_prob": True,
    }


def seed_oss(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {"attention_out_bias": "model.layers.0.self_attn.o_proj.bias" in shapes}


def stablelm(keys: Keys, common: Fields, shapes: Shapes) -> Fields:
    return {
        "layer_norm_eps": common["rms_norm_eps"],
        "use_qkv_bias": common["attention_bias"],
        "qk_layernorm": "model.layers.0.self_attn.q_layernorm.norms.0.weight" in shapes,
        "use_parallel_residual": "model.layers.0.post_attention_layernorm.weight" not in shapes,
        **partial(keys, common),
    }
